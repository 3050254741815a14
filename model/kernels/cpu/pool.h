/* A few threads that run one parallel region at a time; a region is a sequence of stages, a stage a number of items.
 *
 * Threads claim chunks of items from a counter, and a stage is over when all of its items are done, not when all threads
 * have come by. So a thread that wakes late, or that the system has put aside, holds nobody up beyond the chunk it holds:
 * on a machine that other processes use as well, barriers would wait for it at every stage.
 *
 * A chunk is half of a fair share of what is left. Neighbouring items are neighbours in memory, where the processor fetches
 * the next by itself (a jump costs as much as reading 25 KB), so chunks are long at first; in the end they are single
 * items, so that all threads have done at about the same time.
 */
#ifndef OCTAVO_POOL_H
#define OCTAVO_POOL_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_STAGES = 8 };

typedef struct {
    _Alignas(64) atomic_int_fast64_t claimed; /* items, by anybody; of a line of its own, since all threads write it */
    _Alignas(64) atomic_int_fast64_t done;
} Stage;

typedef struct Region {
    void (*body)(struct Region *region); /* what every thread runs: the same stages in the same order */
    const void *arguments;
    Stage stages[MAX_STAGES];
} Region;

/* Takes the pool for this thread, with a workspace of at least so many bytes, whose contents are undefined. */
unsigned char *pool_acquire(size_t workspace);

/* Runs body(arguments) on all threads; returns when all of it is done. */
void pool_run(void (*body)(Region *), const void *arguments);

void pool_release(void);

/* Takes part in a stage: work(arguments, first, last) for chunks of its items, until none is left; then waits for its
 * end, after which all that was written in it may be read. */
void pool_stage(Region *region, int stage, int64_t items, void (*work)(const void *, int64_t, int64_t));

void pool_set_threads(int64_t threads);

#endif
