/* Drawing: intervals of logits, and the sample of a row.
 *
 * Numbers of the compute type are counted as integers, so that the next one, or the outermost one within a distance, is
 * found exactly: distances are rounded, and only trying tells.
 */
#include "sample.h"

enum {
    DIGIT = 11, /* bits of a digit of the sort, which has two digits */
    DIGITS = 1 << DIGIT,
    SKIPPED = 9 /* last bits of a float that are not compared: differences below 2^-14 */
};

void csm_sample_clear_set(csm_sample_set *set) {
    const csm_sample_range all = {-CSM_INF, CSM_INF, -CSM_INF, CSM_INF, INT64_MAX};
    *set = (csm_sample_set){.large = all, .near = all, .unit = 1};
}

/* Numbers of the compute type in order, as integers, and back. */
static int64_t number_of(const csm_sample_row *row, double x) {
    x += 0.0; /* -0 is 0 */
    if (csm_is_single(&row->call->base)) {
        const float f = (float)x;
        int32_t bits;
        memcpy(&bits, &f, sizeof bits);
        return bits >= 0 ? bits : -(int64_t)(bits & INT32_MAX);
    }
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >= 0 ? bits : -(bits & INT64_MAX);
}
static double of_number(const csm_sample_row *row, int64_t number) {
    const uint64_t size = (uint64_t)(number < 0 ? -number : number);
    double x;
    if (csm_is_single(&row->call->base)) {
        const uint32_t bits = (uint32_t)size;
        float f;
        memcpy(&f, &bits, sizeof f);
        x = (double)f;
    } else {
        memcpy(&x, &size, sizeof x);
    }
    return number < 0 ? -x : x;
}
double csm_sample_next(const csm_sample_row *row, double x) { return of_number(row, number_of(row, x) + 1); }
double csm_sample_least(const csm_sample_row *row, double x) {
    if (!csm_is_single(&row->call->base)) return x;
    const double near = (double)(float)x;
    return near >= x ? near : csm_sample_next(row, near);
}

/* The outermost number on one side of the middle whose distance from the centre is below `distance`, or equal to it:
 * distances are rounded, so that only trying tells. */
static double outermost(const csm_sample_row *row, double middle, double end, double distance, int equal) {
    int64_t in = number_of(row, middle), out = number_of(row, end);
    while ((uint64_t)in - (uint64_t)out + 1 > 2) { /* their difference is beyond 1 */
        const int64_t at = in / 2 + out / 2 + (in % 2 + out % 2) / 2;
        const double d = csm_sample_distance(&row->set, of_number(row, at));
        if (d < distance || (equal && d == distance)) in = at;
        else out = at;
    }
    return of_number(row, in);
}
void csm_sample_around(const csm_sample_row *row, double distance, int equal, double *interval) {
    const double center = row->set.center / row->set.unit,
                 largest = csm_is_single(&row->call->base) ? 0x1p128 : CSM_INF;
    const double middle = csm_is_single(&row->call->base) ? (double)(float)center : center;
    const double d = csm_sample_distance(&row->set, middle);
    interval[0] = CSM_INF; /* empty */
    interval[1] = -CSM_INF;
    if (!(d < distance || (equal && d == distance))) return;
    interval[0] = outermost(row, middle, -largest, distance, equal);
    interval[1] = outermost(row, middle, largest, distance, equal);
}

/* Copies numbers of the compute type. */
#define UNPACK(REAL)                                                 \
    static void unpack_##REAL(const REAL *x, size_t k, double *to) { \
        for (size_t i = 0; i < k; i++) to[i] = (double)x[i];         \
    }
UNPACK(float)
UNPACK(double)
#undef UNPACK

/* Sorts numbers by two digits: from a to a. */
static void sort(uint64_t *a, uint64_t *b, size_t count) {
    uint16_t first[2][DIGITS];
    memset(first, 0, sizeof first);
    for (size_t i = 0; i < count; i++)
        for (int d = 0; d < 2; d++) first[d][a[i] >> (32 + SKIPPED + d * DIGIT) & (DIGITS - 1)]++;
    for (int d = 0; d < 2; d++)
        for (size_t i = 0, sum = 0; i < DIGITS; i++) {
            const uint16_t more = first[d][i];
            first[d][i] = (uint16_t)sum;
            sum += more;
        }
    for (size_t i = 0; i < count; i++) b[first[0][a[i] >> (32 + SKIPPED) & (DIGITS - 1)]++] = a[i];
    for (size_t i = 0; i < count; i++) a[first[1][b[i] >> (32 + SKIPPED + DIGIT)]++] = b[i];
}
/* The distance from the largest number, as the bits of a float, orders them; its last bits do not matter. */
size_t csm_sample_sort(const double *values, size_t count, uint64_t *room, double *sorted) {
    double max = -CSM_INF;
    size_t left = 0;
    for (size_t i = 0; i < count; i++) max = values[i] > max ? values[i] : max;
    for (size_t i = 0; i < count; i++) {
        const float distance = (float)(max - values[i]) + 0.0f; /* -0 - 0 is -0, whose bits are large */
        uint32_t bits;
        memcpy(&bits, &distance, sizeof bits);
        if (values[i] > -CSM_INF) room[left++] = (uint64_t)bits << 32 | i;
    }
    sort(room, room + left, left);
    for (size_t i = 0; i < left; i++) sorted[i] = values[(uint32_t)room[i]];
    return left;
}
void csm_sample_unpack(const csm_sample_row *row, const char *x, size_t k, double *to) {
    CSM_BY_TYPE(row, unpack, (uintptr_t)x, k, to);
}
csm_status csm_sample_pick(csm_sample_row *row) {
    const csm_call *c = &row->call->base;
    enum { MOST = CSM_SAMPLE_PICKED };
    const size_t step = row->count / MOST;
    csm_strided from = {row->from.data, 0, row->from.axis * (ptrdiff_t)step};
    csm_strided mask = {row->mask.data, 0, row->mask.axis * (ptrdiff_t)step};
    char *memory = csm_sample_buffer(row->call, row->thread, CSM_SAMPLE_SORTED, MOST * 4 * sizeof(double));
    if (!memory) return CSM_NO_MEMORY;
    double *sorted = (double *)(void *)memory, *values = sorted + MOST;
    uint64_t *room = (uint64_t *)(void *)(values + MOST);
    char *stored = (char *)room, *wide = (char *)(room + MOST); /* until the values are sorted */
    csm_gather(stored, 0, from, 1, MOST, c->itemsize, &mask, &c->absent);
    c->table->widen[c->dtype](stored, wide, MOST);
    csm_sample_unpack(row, wide, MOST, values);
    row->picked_count = csm_sample_sort(values, MOST, room, sorted);
    row->picked = sorted;
    return CSM_OK;
}
