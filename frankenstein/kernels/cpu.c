/* The fused step for CPUs: all tensors of a parameter group in one call, one pass over memory.

   Called by cpu.py, and by XLA (cpu_xla.h). The arithmetic is in cpu_rule.h, compiled here once for each instruction
   set; the library asks the machine which one to use. Formats of small state are described in state.py. */

#ifdef __linux__
#define _GNU_SOURCE /* sched_getaffinity */
#endif

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#ifdef __GNUC__
#define UNROLL _Pragma("GCC unroll 3")
#else
#define UNROLL
#endif
#define BLOCK 256 /* elements that share an exponent in 8-bit state, and the grain of all other work */
#define PIECE 64  /* blocks that a thread takes at a time */

typedef struct {
    float sign, eps, x_0, beta1, beta1_squared, lr_gain, lr_gain_low, xi_gain, decay, ratio_limit, slack_low, slack_high, grad_limit;
    int32_t rho_of_second_moment, skip;
} options_t;

enum { N_FLOATS = offsetof(options_t, rho_of_second_moment) / sizeof(float) };

typedef struct {
    float x_t, v_hat, root, align, rho, xi_inverse, xi_inverse_low, w;
} factors_t;

enum { FLOAT32, BFLOAT16, EIGHT_BIT, DISPLACEMENT /* theta is written with what it would have moved */ };

/* One tensor; a row of the table that cpu.py makes. */
typedef struct {
    int64_t theta, grad, m, v, x;    /* addresses */
    int64_t exponents, compensation; /* addresses, or 0 */
    int64_t n, row;                  /* elements; elements in a row, at whose ends blocks of 8-bit state end */
    int64_t param_type, state_type;
} tensor_t;

INLINE uint32_t bits_of(float f)
{
    uint32_t b;
    memcpy(&b, &f, 4);
    return b;
}

INLINE float float_of(uint32_t b)
{
    float f;
    memcpy(&f, &b, 4);
    return f;
}

INLINE float fabs_of(float f) { return float_of(bits_of(f) & 0x7fffffffu); }
INLINE float copy_sign(float size, float sign) { return float_of(bits_of(size) | (bits_of(sign) & 0x80000000u)); }

typedef void (*step_fn)(int64_t, float *, const float *, float *, float *, float *, const options_t *);

/* Small numbers ---------------------------------------------------------------------------------------------------- */

/* Bits for rounding up or down by chance. They come from gradient and parameter: no generator, no state, the same
   wherever the element lies, and the same again when a run goes on from a checkpoint. */
INLINE uint32_t noise(float theta, float grad)
{
    uint32_t h = bits_of(grad) * 0x9E3779B1u + bits_of(theta) * 0x85EBCA77u;
    h = (h ^ (h >> 16)) * 0x21F0AAADu;
    h = (h ^ (h >> 15)) * 0xD35A2D97u;
    return h ^ (h >> 15);
}

static const uint32_t SALT[3] = {1u, 0x9E3779B1u, 0xC2B2AE3Du};

INLINE float from_bfloat16(uint16_t b) { return float_of((uint32_t)b << 16); }

INLINE uint16_t to_bfloat16(float f) /* to the nearest, ties to even */
{
    uint32_t b = bits_of(f);
    uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
    return (uint16_t)((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

INLINE uint16_t to_bfloat16_noisy(float f, uint32_t r)
{
    uint32_t b = bits_of(f);
    uint32_t rounded = (b + (r >> 16)) >> 16;
    return (uint16_t)((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : (b & 0x7f800000u) == 0x7f800000u ? b >> 16 : rounded);
}

/* 8 bits: sign, exponent and three bits of mantissa of a float32, relative to the largest exponent of the block. */
INLINE int32_t top_code(int has_sign) { return has_sign ? 126 : 254; }
INLINE int32_t base_of(uint8_t exponent, int has_sign) { return ((int32_t)exponent * 8 + 7) - top_code(has_sign); }

INLINE void decode(int64_t n, const uint8_t *codes, uint8_t exponent, int has_sign, float *values)
{
    int32_t base = base_of(exponent, has_sign), top = top_code(has_sign);
    for (int64_t i = 0; i < n; i++) {
        int32_t code = has_sign ? codes[i] & 127 : codes[i];
        uint32_t sign = has_sign ? (uint32_t)(codes[i] >> 7) << 31 : 0u;
        uint32_t size = code == 0 ? 0u : code > top ? 0x7fc00000u : (uint32_t)(code + base) << 20;
        values[i] = float_of(sign | size);
    }
}

INLINE uint8_t encode(int64_t n, const float *values, const uint32_t *noises, uint32_t salt, int has_sign,
                      uint8_t *codes)
{
    int32_t sizes[BLOCK], largest = 0, top = top_code(has_sign);
    for (int64_t i = 0; i < n; i++) {
        uint32_t b = bits_of(values[i]), size = b & 0x7fffffffu;
        size = !has_sign && b >> 31 && size <= 0x7f800000u ? 0u : size; /* a negative v is as good as 0 */
        int32_t r = (int32_t)((size + ((noises[i] * salt) >> 12)) >> 20);
        r = r > 0x7f7 ? 0x7f7 : r;
        r = size < 0x00800000u ? 0 : r;
        r = size >= 0x7f800000u ? -1 : r; /* not finite */
        sizes[i] = r;
        largest = r > largest ? r : largest;
    }
    uint8_t exponent = (uint8_t)(largest >> 3);
    int32_t base = base_of(exponent, has_sign);
    for (int64_t i = 0; i < n; i++) {
        int32_t r = sizes[i], code = r - base;
        code = code < 1 ? (has_sign ? 0 : 1) : code;
        code = r == 0 ? 0 : r < 0 ? top + 1 : code;
        codes[i] = (uint8_t)(has_sign ? code | (int32_t)(bits_of(values[i]) >> 31) << 7 : code);
    }
    return exponent;
}

/* One block of a tensor that is not all float32. */
INLINE void mixed_block(const tensor_t *t, int64_t block, int64_t start, int64_t n, const options_t *o, step_fn step)
{
    float theta[BLOCK], grad[BLOCK], state[3][BLOCK];
    uint32_t noises[BLOCK];
    uint16_t *compensation = t->compensation ? (uint16_t *)t->compensation + start : NULL;
    int64_t addresses[3] = {t->m, t->v, t->x};

    if (t->param_type == BFLOAT16) {
        const uint16_t *p = (uint16_t *)t->theta + start, *g = (uint16_t *)t->grad + start;
        for (int64_t i = 0; i < n; i++) {
            theta[i] = from_bfloat16(p[i]);
            grad[i] = from_bfloat16(g[i]);
        }
        if (compensation)
            for (int64_t i = 0; i < n; i++) theta[i] += from_bfloat16(compensation[i]);
    } else {
        memcpy(theta, (float *)t->theta + start, n * 4);
        memcpy(grad, (float *)t->grad + start, n * 4);
    }
    for (int64_t i = 0; i < n; i++) noises[i] = noise(theta[i], grad[i]);
    UNROLL for (int k = 0; k < 3; k++) {
        if (t->state_type == FLOAT32) {
            memcpy(state[k], (float *)addresses[k] + start, n * 4);
        } else if (t->state_type == BFLOAT16) {
            const uint16_t *s = (uint16_t *)addresses[k] + start;
            for (int64_t i = 0; i < n; i++) state[k][i] = from_bfloat16(s[i]);
        } else {
            decode(n, (uint8_t *)addresses[k] + start, ((uint8_t *)t->exponents)[3 * block + k], k == 0, state[k]);
        }
    }

    step(n, theta, grad, state[0], state[1], state[2], o);

    UNROLL for (int k = 0; k < 3; k++) {
        if (t->state_type == FLOAT32) {
            memcpy((float *)addresses[k] + start, state[k], n * 4);
        } else if (t->state_type == BFLOAT16) {
            uint16_t *s = (uint16_t *)addresses[k] + start;
            for (int64_t i = 0; i < n; i++) s[i] = to_bfloat16_noisy(state[k][i], noises[i] * SALT[k]);
        } else {
            uint8_t *codes = (uint8_t *)addresses[k] + start;
            ((uint8_t *)t->exponents)[3 * block + k] = encode(n, state[k], noises, SALT[k], k == 0, codes);
        }
    }
    if (t->param_type == BFLOAT16) {
        uint16_t *p = (uint16_t *)t->theta + start;
        for (int64_t i = 0; i < n; i++) p[i] = to_bfloat16(theta[i]);
        if (compensation)
            for (int64_t i = 0; i < n; i++) compensation[i] = to_bfloat16(theta[i] - from_bfloat16(p[i]));
    } else {
        memcpy((float *)t->theta + start, theta, n * 4);
    }
}

/* The rule, for each instruction set ------------------------------------------------------------------------------- */

#define NAME(f) f##_default
#define TARGET
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
#define FMA(a, b, c) __builtin_fmaf(a, b, c)
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif
#include "cpu_rule.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define DISPATCH
#define NAME(f) f##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define FMA(a, b, c) __builtin_fmaf(a, b, c)
#include "cpu_rule.h"

#define NAME(f) f##_avx512
#ifdef __clang__
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")))
#else
#define TARGET __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,prefer-vector-width=512")))
#endif
#define FMA(a, b, c) __builtin_fmaf(a, b, c)
#include "cpu_rule.h"
#endif

typedef void (*blocks_fn)(const tensor_t *, int64_t, int64_t, const options_t *);
typedef void (*factors_fn)(int64_t, const float *, const float *, const float *, const float *, const options_t *,
                           float *);

#ifdef DISPATCH
static const blocks_fn BLOCKS[] = {blocks_default, blocks_avx2, blocks_avx512};
static const factors_fn FACTORS[] = {factors_of_default, factors_of_avx2, factors_of_avx512};
#else
static const blocks_fn BLOCKS[] = {blocks_default};
static const factors_fn FACTORS[] = {factors_of_default};
#endif

/* What cpu.py and this file agree on: the layout of the structures and the formats. */
EXPORT int frankenstein_abi(void) { return 2; }

/* 0 the compiler's own, 1 AVX2, 2 AVX-512. */
EXPORT int frankenstein_best_set(void)
{
#ifdef DISPATCH
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

/* Threads ---------------------------------------------------------------------------------------------------------- */

typedef struct {
    const tensor_t *tensors;
    int64_t n_tensors, n_pieces, next, n_done; /* next piece to take; pieces that are done */
    int64_t *first_piece;                      /* of each tensor, and the end */
    const options_t *options;
    blocks_fn blocks;
    int64_t users; /* who may still look at this; the last frees it, where it is on the heap */
} work_t;

INLINE int64_t n_blocks(const tensor_t *t)
{
    return t->row ? (t->n / t->row) * ((t->row + BLOCK - 1) / BLOCK) : 0;
}

/* All of it, cut into pieces; first_piece has room for n_tensors + 1. */
static work_t work_on(const tensor_t *tensors, int64_t n_tensors, int64_t *first_piece, const options_t *options, int set)
{
    work_t work = {.tensors = tensors, .n_tensors = n_tensors, .first_piece = first_piece, .options = options,
                   .blocks = BLOCKS[set], .users = 1};
    for (int64_t i = 0; i < n_tensors; i++) {
        first_piece[i] = work.n_pieces;
        work.n_pieces += (n_blocks(&tensors[i]) + PIECE - 1) / PIECE;
    }
    first_piece[n_tensors] = work.n_pieces;
    return work;
}

/* Take pieces until there are none: whichever thread has the slower core takes fewer. */
static void take(void *argument)
{
    work_t *work = argument;
    for (;;) {
        int64_t piece = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (piece >= work->n_pieces) return;
        int64_t low = 0, high = work->n_tensors; /* first_piece[low] <= piece < first_piece[high] */
        while (high - low > 1) {
            int64_t middle = (low + high) / 2;
            if (work->first_piece[middle] <= piece) low = middle;
            else high = middle;
        }
        const tensor_t *t = &work->tensors[low];
        int64_t first = (piece - work->first_piece[low]) * PIECE, last = first + PIECE, end = n_blocks(t);
        work->blocks(t, first, last < end ? last : end, work->options);
        __atomic_add_fetch(&work->n_done, 1, __ATOMIC_RELEASE);
    }
}

#ifdef _WIN32
static int64_t n_processors(void) { return 1; }
static void yield(void) {}
#else
/* Those that this process may use, where the system says so. */
static int64_t n_processors(void)
{
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return sysconf(_SC_NPROCESSORS_ONLN);
}

static void yield(void) { sched_yield(); }

static void *take_in_thread(void *argument)
{
    take(argument);
    return NULL;
}
#endif

/* Run on n_threads. torch's own OpenMP threads are borrowed where they can be: a second pool would compete with them,
   because idle OpenMP threads spin for a while before they sleep. */
static void take_on(work_t *work, int n_threads)
{
#ifndef _WIN32
    typedef void (*parallel_fn)(void (*)(void *), void *, unsigned, unsigned);
    parallel_fn parallel = (parallel_fn)dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (n_threads > 1 && parallel) {
        parallel(take, work, (unsigned)n_threads, 0);
        return;
    }
    pthread_t threads[64];
    int n_started = 0;
    for (int i = 1; i < n_threads && n_started < 64; i++)
        if (pthread_create(&threads[n_started], NULL, take_in_thread, work) == 0) n_started++;
    take(work);
    for (int i = 0; i < n_started; i++) pthread_join(threads[i], NULL);
#else
    take(work);
#endif
}

/* Step all tensors in place. Returns 0, or 1 if there is no memory; then nothing was done. */
EXPORT int frankenstein_step(const tensor_t *tensors, int64_t n_tensors, const options_t *options, int n_threads, int set)
{
    int64_t *first_piece = malloc((size_t)(n_tensors + 1) * sizeof(int64_t));
    if (!first_piece) return 1;
    work_t work = work_on(tensors, n_tensors, first_piece, options, set);
    take_on(&work, work.n_pieces < n_threads ? (int)work.n_pieces : n_threads);
    free(first_piece);
    return 0;
}

/* Write x_t, v_hat, 1/2 - P, rho, xi and w of n elements, one after the other, into out (6, n). */
EXPORT void frankenstein_factors(int64_t n, const float *grad, const float *m, const float *v, const float *x,
                                 const options_t *options, float *out, int set)
{
    FACTORS[set](n, grad, m, v, x, options, out);
}

#include "cpu_xla.h"
