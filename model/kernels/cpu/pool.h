/* The pool's threads run one parallel region at a time. A region is a sequence of stages, a stage a number of items.
 *
 * Threads claim chunks of items from a counter. A stage is over when all of its items are done, even if not every thread
 * has taken part. So a thread that wakes late, or that the system has suspended, delays the others only by the chunk that
 * it holds. Barriers would wait for it at every stage on a machine that other processes use as well.
 *
 * A chunk is half of a fair share of what is left. Neighbouring items are neighbours in memory, where the processor
 * fetches ahead by itself (a jump costs as much as reading 25 KB), so chunks are long at first. At the end they are single
 * items, so that all threads finish at about the same time.
 */
#ifndef OCTAVO_POOL_H
#define OCTAVO_POOL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_STAGES = 8 };

typedef struct {
    _Alignas(64) atomic_int_fast64_t claimed; /* items claimed by any thread; it has a cache line of its own, since all threads write it */
    _Alignas(64) atomic_int_fast64_t done;
} Stage;

typedef struct Region {
    void (*body)(struct Region *region); /* Every thread runs it, and so the same stages in the same order. */
    const void *arguments;
    Stage stages[MAX_STAGES];
} Region;

/* Takes the pool for this thread. Returns a workspace of at least so many bytes, whose contents are undefined. */
unsigned char *pool_acquire(size_t workspace);

/* Runs the body on all threads, and returns when everything is done. */
void pool_run(void (*body)(Region *), const void *arguments);

void pool_release(void);

/* Takes part in a stage: calls work(arguments, first, last) for chunks of its items until none is left, then waits for the
 * end of the stage. After that everything that was written in the stage may be read. */
void pool_stage(Region *region, int stage, int64_t items, void (*work)(const void *, int64_t, int64_t));

void pool_set_threads(int64_t threads);

#endif
