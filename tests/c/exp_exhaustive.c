/* The float32 exp core over every finite |x| <= 10^6, on every instruction set: e^x = P 2^n with P at most 1 ULP
 * off, P 2^n non-decreasing in x, the same P and n everywhere.
 *
 *     exp_exhaustive [--stride S] [--json FILE --commit C] [--emulated NAME] [--other NAME --checksum X]
 *     exp_exhaustive [--stride S] --only NAME
 *
 * S = 1: all 2,464,696,322 numbers; else every S-th run of 4096 neighbours, and (S < 10000) all of 1/64 <= |x| < 1/2,
 * where P's steps are smallest.  --only computes just the checksum of one unit's bits, for an emulator, on which the
 * rest would take hours; --other compares it with that of the units here.  A single wrong P changes the checksum.
 *
 * Oracle: r = x - n ln 2 in float64 (x and n times the 32 leading bits of ln 2 are exact, so is their difference),
 * e^r by a Taylor polynomial of degree 14 (|r| <= 0.38: error below 2e-16, 4e-9 ULP of float32).
 */
#define _GNU_SOURCE
#include "../../src_c/isa/dispatch.h"
#include "exp_unit.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef void (*exp_unit)(const float *, float *, float *, size_t);
static const struct {
    const char *name;
    exp_unit compute;
    unsigned needs;
} units[] = {
    {"scalar", exp_unit_scalar, 0},
#if defined(__aarch64__)
    {"neon", exp_unit_neon, CSM_CPU_NEON},
#else
    {"avx2", exp_unit_avx2, CSM_CPU_AVX2},
    {"avx512", exp_unit_avx512, CSM_CPU_AVX2 | CSM_CPU_AVX512},
#endif
};
enum { UNITS = sizeof units / sizeof units[0], CHUNK = 4096 };

/* The floats in ascending order: number 0 is -10^6, the two zeros are numbers LARGEST and LARGEST + 1. */
static const uint32_t LARGEST = 0x49742400;
static float number(uint64_t i) {
    uint32_t u = i <= LARGEST ? 0x80000000u | (LARGEST - (uint32_t)i) : (uint32_t)(i - LARGEST - 1);
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static double exact(float x, float n) {
    const double r = ((double)x - (double)n * 0x1.62e42feep-1) - (double)n * 0x1.a39ef35793c76p-33;
    double y = 1.0 / 87178291200;
    y = y * r + 1.0 / 6227020800;
    y = y * r + 1.0 / 479001600;
    y = y * r + 1.0 / 39916800;
    y = y * r + 1.0 / 3628800;
    y = y * r + 1.0 / 362880;
    y = y * r + 1.0 / 40320;
    y = y * r + 1.0 / 5040;
    y = y * r + 1.0 / 720;
    y = y * r + 1.0 / 120;
    y = y * r + 1.0 / 24;
    y = y * r + 1.0 / 6;
    y = y * r + 0.5;
    y = y * r + 1;
    return y * r + 1;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t stride = 1;
static const char *json, *commit = "unknown", *only, *other, *other_checksum = "", *emulated = "";

static int read_options(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--stride")) stride = strtoull(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "--json")) json = argv[i + 1];
        else if (!strcmp(argv[i], "--commit")) commit = argv[i + 1];
        else if (!strcmp(argv[i], "--only")) only = argv[i + 1];
        else if (!strcmp(argv[i], "--other")) other = argv[i + 1];
        else if (!strcmp(argv[i], "--checksum")) other_checksum = argv[i + 1];
        else if (!strcmp(argv[i], "--emulated")) emulated = argv[i + 1];
        else {
            fprintf(stderr, "unknown option: %s\n", argv[i]);
            return 0;
        }
    }
    if (stride < 1) stride = 1;
    return 1;
}

/* The figures of each unit. */
typedef struct figures {
    double worst[UNITS];
    uint64_t falls[UNITS], steps[UNITS]; /* numbers at which a unit decreases, or has an error above 1 ULP or a bad n */
    uint64_t differs[UNITS]; /* chunks in which its bits differ from those of scalar */
    int available[UNITS];
} figures;

/* Prints the report, writes it to --json and returns whether all checks passed. */
static int report(const figures *f, uint64_t count, uint64_t checksum, double duration) {
    int ok = 1;
    char text[2048], date[32], here[32];
    snprintf(here, sizeof here, "%016llx", (unsigned long long)checksum);
    time_t now = time(NULL);
    strftime(date, sizeof date, "%Y-%m-%d", gmtime(&now));
    int at =
        snprintf(text, sizeof text,
                 "{\n  \"date\": \"%s\",\n  \"commit\": \"%s\",\n  \"command\": \"tests/c/run.sh exp-all\",\n"
                 "  \"seconds\": %.0f,\n  \"count\": %llu,\n  \"stride\": %llu,\n  \"checksum\": \"%s\",\n  \"isa\": {",
                 date, commit, duration, (unsigned long long)count, (unsigned long long)stride, here);
    for (int u = 0, comma = 0; u < UNITS; u++) {
        if (only || !f->available[u]) continue;
        int good = f->worst[u] <= 1 && f->falls[u] == 0 && f->steps[u] == 0 && f->differs[u] == 0;
        at += snprintf(text + at, sizeof text - (size_t)at,
                       "%s\n    \"%s\": {\"max_ulp\": %.6f, \"monotone\": %s, \"equal\": %s, \"how\": \"%s\"}",
                       comma++ ? "," : "", units[u].name, f->worst[u], f->falls[u] ? "false" : "true",
                       f->differs[u] ? "false" : "true", strcmp(emulated, units[u].name) ? "this CPU" : "emulated");
        ok &= good;
        if (!good)
            printf(
                "FAILED %s: max %.6f ULP, decreases %llu times, %llu numbers wrong, %llu chunks differ from scalar\n",
                units[u].name, f->worst[u], (unsigned long long)f->falls[u], (unsigned long long)f->steps[u],
                (unsigned long long)f->differs[u]);
    }
    if (other) {
        int equal = !strcmp(here, other_checksum);
        at += snprintf(
            text + at, sizeof text - (size_t)at,
            ",\n    \"%s\": {\"max_ulp\": %.6f, \"monotone\": %s, \"equal\": %s, \"how\": \"emulated, by checksum\"}",
            other, f->worst[0], f->falls[0] ? "false" : "true", equal ? "true" : "false");
        ok &= equal;
        if (!equal) printf("FAILED %s: checksum %s, here %s\n", other, other_checksum, here);
    }
    snprintf(text + at, sizeof text - (size_t)at, "\n  }\n}\n");
    fputs(text, stdout);
    if (json) {
        FILE *file = fopen(json, "w");
        if (!file || fputs(text, file) < 0 || fclose(file)) {
            perror(json);
            return 0;
        }
    }
    printf("%d passed, %d failed\n", ok, !ok);
    return ok;
}

int main(int argc, char **argv) {
    uint64_t total = 2 * ((uint64_t)LARGEST + 1), checksum = 0;
    if (!read_options(argc, argv)) return 2;
    const uint64_t chunks = (total + CHUNK - 1) / CHUNK;
    uint64_t count = 0;
    const double begin = seconds();
    double worst[UNITS] = {0};
    uint64_t falls[UNITS] = {0}, differs[UNITS] = {0}, steps[UNITS] = {0};
    int available[UNITS], base = 0;
    for (int u = 0; u < UNITS; u++) {
        available[u] = (csm_cpu_features() & units[u].needs) == units[u].needs;
        if (only && !strcmp(only, units[u].name)) base = u;
    }
    if (!available[base] || (only && strcmp(only, units[base].name) != 0)) {
        fprintf(stderr, "unit %s is not available here\n", only);
        return 2;
    }

#pragma omp parallel for schedule(dynamic, 64) reduction(max : worst) \
    reduction(+ : falls, differs, steps, checksum, count)
    for (uint64_t c = 0; c < chunks; c++) {
        enum { ROOM = CHUNK + 16 };
        static _Thread_local float x[ROOM], p[UNITS][ROOM], n[UNITS][ROOM];
        static _Thread_local double wanted[ROOM];
        uint64_t first = c * CHUNK, last = first + CHUNK < total ? first + CHUNK : total - 1; /* the next run's first */
        float middle = fabsf(number(first));
        if (c % stride && (stride >= 10000 || !(middle >= 0.015625f && middle < 0.5f))) continue;
        size_t k = (size_t)(last - first) + 1;
        count += total - first < CHUNK ? total - first : CHUNK;
        for (size_t i = 0; i < k; i++) x[i] = number(first + i);
        for (size_t i = k; i < (k + 15) / 16 * 16; i++) x[i] = x[k - 1];
        if (only) units[base].compute(x, p[base], n[base], (k + 15) / 16 * 16);
        for (int u = 0; u < UNITS; u++) {
            if (only || !available[u]) continue;
            units[u].compute(x, p[u], n[u], (k + 15) / 16 * 16);
            if (u == 0)
                for (size_t i = 0; i < k; i++) wanted[i] = exact(x[i], n[0][i]);
            else differs[u] += memcmp(p[u], p[0], k * 4) != 0 || memcmp(n[u], n[0], k * 4) != 0;
            double largest = 0;
            uint64_t fell = 0, off = 0;
            for (size_t i = 0; i < k; i++) {
                double ulp = wanted[i] >= 1 ? 0x1p-23 : 0x1p-24, error = fabs((double)p[u][i] - wanted[i]) / ulp;
                largest = error > largest ? error : largest;
                off += !(error <= 1) || !(fabs((double)x[i] - (double)n[u][i] * 0x1.62e42fefa39efp-1) <= 0.378);
            }
            for (size_t i = 0; i + 1 < k; i++) { /* P 2^n against that of the next number */
                float step = n[u][i + 1] - n[u][i];
                float scale = step == 0   ? 1.0f
                              : step == 1 ? 2.0f
                                          : 4.0f; /* 4: anything is larger, P lies in (0.68, 1.47) */
                fell += !(step >= 0) || !(p[u][i] <= scale * p[u][i + 1]);
            }
            worst[u] = largest > worst[u] ? largest : worst[u];
            falls[u] += fell;
            steps[u] += off;
        }
        for (size_t i = 0; i < k; i++) {
            uint32_t bits[2];
            memcpy(&bits[0], &p[base][i], 4);
            memcpy(&bits[1], &n[base][i], 4);
            checksum += ((uint64_t)bits[0] * 0x9e3779b97f4a7c15u ^ bits[1]) * (first + i + 1);
        }
    }
    figures f;
    memcpy(f.worst, worst, sizeof worst);
    memcpy(f.falls, falls, sizeof falls);
    memcpy(f.differs, differs, sizeof differs);
    memcpy(f.steps, steps, sizeof steps);
    memcpy(f.available, available, sizeof available);
    return !report(&f, count, checksum, seconds() - begin);
}
