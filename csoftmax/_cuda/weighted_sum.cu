/* log |sum b_j e^(x_j / T)| and the sign of the sum, logsumexp with weights, with the bits of the CPU.
 *
 * A block of threads computes a row in two passes.  Its threads compute the terms of THREADS elements, logarithms and
 * exponentials; one of them adds these in the order of the elements.  Values and signs are in double.
 * Time: not measured on hardware yet; this is no path for speed.
 */
#define LOADS 4
#include "common.cuh"
#include "kernel/softmax/weighted.h"

enum { THREADS = 128 };

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    weighted(const T *__restrict__ x, const double *__restrict__ b, const uint8_t *__restrict__ where,
             const double *__restrict__ temperatures, double temperature, double *value, double *sign, long long rows,
             long long n) {
    __shared__ csm_weighted_term terms[THREADS];
    __shared__ csm_pair parts[THREADS];
    __shared__ int takes_part[THREADS];
    __shared__ csm_weighted_term top[1];
    __shared__ int is_known[1];
    const int thread = (int)threadIdx.x;
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        const double t = temperatures ? temperatures[at] : temperature;
        csm_weighted_row row = {}; /* of the first thread */
        for (int pass = 0; pass < 2; pass++) {
            if (pass == 1 && thread == 0) {
                top[0] = row.top;
                is_known[0] = csm_weighted_is_known(&row);
            }
            __syncthreads();
            if (pass == 1 && is_known[0]) break;
            for (long long begin = 0; begin < n; begin += THREADS) {
                const long long j = at * n + begin + thread;
                const double bj = begin + thread < n && (!where || where[j]) ? b[j] : 0;
                takes_part[thread] = bj != 0;
                if (bj != 0) {
                    const csm_weighted_term u = csm_weighted_term_of((double)LOAD(x + j), bj, t);
                    terms[thread] = u;
                    if (pass == 1 && u.x > -CSM_INF) parts[thread] = csm_weighted_ratio(&u, &top[0]);
                }
                __syncthreads();
                for (int i = 0; i < THREADS && thread == 0; i++) {
                    if (!takes_part[i]) continue;
                    if (pass == 0 && csm_weighted_reads(&row, terms[i].x, terms[i].b))
                        csm_weighted_find(&row, &terms[i]);
                    if (pass == 1 && csm_weighted_adds(&row, terms[i].x, terms[i].b))
                        row.rest = csm_pair_add(row.rest, parts[i]);
                }
                __syncthreads();
            }
        }
        if (thread == 0) {
            double s;
            value[at] = csm_weighted_end(&row, &s);
            sign[at] = s;
        }
        __syncthreads();
    }
}
