/* How fast the machine reads memory: threads that do nothing but load, over a buffer that no cache holds. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { MOST_THREADS = 256, ROW = 512 }; /* bytes of eight loads */

typedef uint64_t Vector __attribute__((vector_size(64)));

typedef struct {
    const char *from;
    size_t bytes; /* whole rows */
    Vector sum;
} Part;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Eight independent sums, so that no load waits for the one before; the result keeps the compiler from dropping them. */
static void *read_part(void *argument)
{
    Part *part = argument;
    Vector sums[8] = {{0}};
    for (const char *row = part->from; row < part->from + part->bytes; row += ROW)
        for (int i = 0; i < 8; i++)
            sums[i] ^= *(const Vector *)(row + 64 * i);
    part->sum = sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
    return NULL;
}

/* A buffer in huge pages where the system has them, every page of it written once; NULL if memory is short. */
void *bandwidth_allocate(size_t bytes)
{
    void *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED)
        return NULL;
    madvise(buffer, bytes, MADV_HUGEPAGE);
    memset(buffer, 1, bytes);
    return buffer;
}

void bandwidth_free(void *buffer, size_t bytes)
{
    munmap(buffer, bytes);
}

/* Bytes per second of one pass by so many threads over a buffer of whole rows for each; 0 if a thread cannot start. */
double bandwidth_read(const char *buffer, size_t bytes, int threads)
{
    static volatile uint64_t sink;
    pthread_t handles[MOST_THREADS];
    Part parts[MOST_THREADS] __attribute__((aligned(64)));
    size_t each = bytes / (size_t)threads / ROW * ROW;
    double started = now();
    int running = 0;
    for (; running < threads; running++) {
        parts[running] = (Part){buffer + (size_t)running * each, each, {0}};
        if (pthread_create(&handles[running], NULL, read_part, &parts[running]))
            break;
    }
    for (int i = 0; i < running; i++) {
        pthread_join(handles[i], NULL);
        sink = parts[i].sum[0];
    }
    return running == threads ? (double)each * threads / (now() - started) : 0;
}
