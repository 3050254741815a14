/* Measures how fast the machine reads memory: threads do nothing but load from a buffer that no cache holds. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { MOST_THREADS = 256, BLOCK = 512 /* bytes of eight loads */ };

typedef uint64_t Vector __attribute__((vector_size(64)));

typedef struct {
    const char *from;
    size_t bytes; /* a multiple of BLOCK */
    Vector sum;
} Share;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Keeps eight independent sums, so that no load waits for the one before; they are stored, so none is optimised away. */
static void *read_share(void *argument)
{
    Share *share = argument;
    Vector sums[8] = {{0}};
    for (const char *block = share->from; block < share->from + share->bytes; block += BLOCK)
        for (int i = 0; i < 8; i++)
            sums[i] ^= *(const Vector *)(block + 64 * i);
    share->sum = sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
    return NULL;
}

/* Returns a buffer whose pages were all written once, in huge pages if the system has them; NULL if memory is short. */
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

/* Returns the bytes per second of one pass, in which each thread reads whole blocks; 0 if a thread cannot start. */
double bandwidth_read(const char *buffer, size_t bytes, int threads)
{
    static volatile uint64_t sink;
    pthread_t handles[MOST_THREADS];
    Share shares[MOST_THREADS] __attribute__((aligned(64)));
    size_t each = bytes / (size_t)threads / BLOCK * BLOCK;
    double started = now();
    int running = 0;
    for (; running < threads; running++) {
        shares[running] = (Share){buffer + (size_t)running * each, each, {0}};
        if (pthread_create(&handles[running], NULL, read_share, &shares[running]))
            break;
    }
    for (int i = 0; i < running; i++) {
        pthread_join(handles[i], NULL);
        sink = shares[i].sum[0];
    }
    return running == threads ? (double)each * threads / (now() - started) : 0;
}
