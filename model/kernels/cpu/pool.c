#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

enum { MAX_THREADS = 256 };

static const int64_t SPIN_NANOSECONDS = 30000; /* It is longer than Python takes between two layers, and shorter than other pauses. */
static const int YIELD_AFTER = 4000;           /* looks at the end of a stage before the core is offered to others */

static struct {
    pthread_mutex_t turn; /* held by the caller whose region runs */
    pthread_mutex_t sleep;
    pthread_cond_t wake;
    pthread_t workers[MAX_THREADS];
    int64_t threads; /* the caller included */
    int64_t sleeping;
    unsigned char *workspace;
    size_t size; /* bytes of the workspace */
    Region region;
    atomic_int_fast64_t opened; /* number of regions that have begun */
    atomic_int_fast64_t inside; /* workers in the region */
    atomic_bool open;           /* whether more may enter */
    atomic_bool ending;
} pool = {.turn = PTHREAD_MUTEX_INITIALIZER,
          .sleep = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .threads = 1};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Waits for a region after the `seen` first ones: it spins for a short while and then sleeps. */
static void await_region(int64_t seen) {
    const int64_t until = nanoseconds() + SPIN_NANOSECONDS;
    do {
        for (int look = 0; look < 64; look++) {
            if (atomic_load(&pool.opened) != seen) return;
            relax();
        }
    } while (nanoseconds() < until);
    pthread_mutex_lock(&pool.sleep);
    pool.sleeping++;
    while (atomic_load(&pool.opened) == seen) pthread_cond_wait(&pool.wake, &pool.sleep);
    pool.sleeping--;
    pthread_mutex_unlock(&pool.sleep);
}

/* A worker counts itself in before it checks that the region is open; pool_run closes the region before it checks that
 * nobody is inside. So no worker touches a region that has ended. */
static void *worker(void *unused) {
    (void)unused;
    int64_t seen = 0;
    while (!atomic_load(&pool.ending)) {
        await_region(seen);
        seen = atomic_load(&pool.opened);
        atomic_fetch_add(&pool.inside, 1);
        if (atomic_load(&pool.open)) pool.region.body(&pool.region);
        atomic_fetch_sub(&pool.inside, 1);
    }
    return NULL;
}

static void wake_workers(void) {
    pthread_mutex_lock(&pool.sleep);
    atomic_fetch_add(&pool.opened, 1);
    if (pool.sleeping) pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.sleep);
}

static void close_region(void) {
    atomic_store(&pool.open, false);
    for (int looks = 0; atomic_load(&pool.inside) > 0; looks++) looks < YIELD_AFTER ? relax() : (void)sched_yield();
}

unsigned char *pool_acquire(size_t workspace) {
    pthread_mutex_lock(&pool.turn);
    if (workspace > pool.size) {
        free(pool.workspace);
        pool.size = (workspace + 4095) & ~(size_t)4095;
        pool.workspace = aligned_alloc(4096, pool.size);
        if (pool.workspace == NULL) abort(); /* The system also ends a process when promised memory is missing. */
    }
    return pool.workspace;
}

void pool_release(void) { pthread_mutex_unlock(&pool.turn); }

void pool_run(void (*body)(Region *), const void *arguments) {
    pool.region.body = body;
    pool.region.arguments = arguments;
    for (int stage = 0; stage < MAX_STAGES; stage++) {
        atomic_store(&pool.region.stages[stage].claimed, 0);
        atomic_store(&pool.region.stages[stage].done, 0);
    }
    if (pool.threads > 1) {
        atomic_store(&pool.open, true);
        wake_workers();
    }
    body(&pool.region);
    if (pool.threads > 1) close_region();
}

/* Claims the items from the returned one up to `last` (exclusive). If it is not below `items`, none was left. */
static int64_t claim(Stage *counts, int64_t items, int64_t *last) {
    int64_t first = atomic_load(&counts->claimed);
    do {
        const int64_t share = (items - first) / (2 * pool.threads);
        *last = first + (share > 1 ? share : 1);
    } while (first < items && !atomic_compare_exchange_weak(&counts->claimed, &first, *last));
    return first;
}

void pool_stage(Region *region, int stage, int64_t items, void (*work)(const void *, int64_t, int64_t)) {
    Stage *counts = &region->stages[stage];
    int64_t first, last;
    while ((first = claim(counts, items, &last)) < items) {
        work(region->arguments, first, last);
        atomic_fetch_add(&counts->done, last - first);
    }
    for (int looks = 0; atomic_load(&counts->done) < items; looks++) looks < YIELD_AFTER ? relax() : (void)sched_yield();
}

void pool_set_threads(int64_t threads) {
    pthread_mutex_lock(&pool.turn);
    atomic_store(&pool.ending, true);
    wake_workers();
    for (int64_t n = 1; n < pool.threads; n++) pthread_join(pool.workers[n], NULL);
    atomic_store(&pool.ending, false);
    atomic_store(&pool.opened, 0);
    pool.threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
    for (int64_t n = 1; n < pool.threads; n++) {
        if (pthread_create(&pool.workers[n], NULL, worker, NULL)) {
            pool.threads = n; /* Fewer threads than wanted are slower, but the results are the same. */
            break;
        }
    }
    pthread_mutex_unlock(&pool.turn);
}
