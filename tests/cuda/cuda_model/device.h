/* The part of CUDA that kernels use, for g++, which compiles them for the model: included before the .cu text.
 *
 * A thread of a block is a fiber (runtime.cpp).  Barriers, shuffles and votes call the runtime, which keeps track of
 * waiting threads; -fsanitize=thread makes g++ announce each memory access, and the runtime replaces its library.
 * Nothing here comes from NVIDIA's headers: kernels that need more of CUDA than this do not compile.
 */
#ifndef CUDA_MODEL_DEVICE_H
#define CUDA_MODEL_DEVICE_H

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
/* the loader rewrites declarations with __shared__ */

namespace cuda_model {
enum operation { SYNC_WARP, SHUFFLE, VOTE };
struct coordinates {
    uint3 thread, block;
    dim3 block_size, grid_size;
};
extern "C" {
extern coordinates *cuda_model_here; /* those of the running thread */
int cuda_model_lane();
/* Waits until all lanes of the mask are at this place, and returns the value that lane `from` brought. */
uint64_t cuda_model_exchange(int operation, unsigned mask, uint64_t value, int from, const char *file, int line);
unsigned cuda_model_vote(unsigned mask, int predicate, const char *file, int line);
void cuda_model_barrier(const char *file, int line);
void *cuda_model_dynamic_shared();
void *cuda_model_static_shared(size_t id, size_t size, size_t align);
}
template <class T> uint64_t bits_of(T value) {
    static_assert(sizeof value <= 8, "shuffles move at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class T> T of_bits(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <class Array> Array &static_shared(size_t id) {
    return *static_cast<Array *>(cuda_model_static_shared(id, sizeof(Array), alignof(Array)));
}
/* Calls a kernel with arguments at addresses, and tells the sizes of its parameters, which the loader checks. */
template <class Kernel> struct entry;
template <class... A> struct entry<void (*)(A...)> {
    static int sizes(int *out) {
        const int all[] = {(int)sizeof(A)..., 0};
        memcpy(out, all, sizeof all - sizeof(int));
        return sizeof...(A);
    }
    template <size_t... I> static void spread(void (*kernel)(A...), void **at, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_cv_t<A> *>(at[I])...);
    }
    static void call(void (*kernel)(A...), void **at) { spread(kernel, at, std::make_index_sequence<sizeof...(A)>{}); }
};
} // namespace cuda_model

#define threadIdx (cuda_model::cuda_model_here->thread)
#define blockIdx (cuda_model::cuda_model_here->block)
#define blockDim (cuda_model::cuda_model_here->block_size)
#define gridDim (cuda_model::cuda_model_here->grid_size)

#define CUDA_MODEL_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
inline void __syncthreads(CUDA_MODEL_PLACE) { cuda_model::cuda_model_barrier(file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_MODEL_PLACE) {
    cuda_model::cuda_model_exchange(cuda_model::SYNC_WARP, mask, 0, cuda_model::cuda_model_lane(), file, line);
}
/* Lanes as in the PTX manual: a source outside the segment of `width` lanes is the lane itself. */
template <class T> T __shfl_sync(unsigned mask, T value, int from, int width = 32, CUDA_MODEL_PLACE) {
    const int me = cuda_model::cuda_model_lane();
    from = (me & ~(width - 1)) | (from & (width - 1));
    return cuda_model::of_bits<T>(
        cuda_model::cuda_model_exchange(cuda_model::SHUFFLE, mask, cuda_model::bits_of(value), from, file, line));
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_MODEL_PLACE) {
    const int me = cuda_model::cuda_model_lane(), from = (me ^ lanes) > (me | (width - 1)) ? me : me ^ lanes;
    return cuda_model::of_bits<T>(
        cuda_model::cuda_model_exchange(cuda_model::SHUFFLE, mask, cuda_model::bits_of(value), from, file, line));
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_MODEL_PLACE) {
    return cuda_model::cuda_model_vote(mask, predicate, file, line);
}
inline int __any_sync(unsigned mask, int predicate, CUDA_MODEL_PLACE) {
    return cuda_model::cuda_model_vote(mask, predicate, file, line) != 0;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }

#endif
