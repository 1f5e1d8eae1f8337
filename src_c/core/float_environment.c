/* Round to nearest, all exceptions masked, no flush-to-zero. */
#include "float_environment.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
csm_fp_environment csm_fp_enter(void) {
    csm_fp_environment saved = {_mm_getcsr(), 0};
    _mm_setcsr(0x1f80);
    return saved;
}
void csm_fp_leave(csm_fp_environment saved) { _mm_setcsr((unsigned)saved.control); }
#elif defined(__aarch64__)
csm_fp_environment csm_fp_enter(void) {
    csm_fp_environment saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved.control));
    __asm__ volatile("mrs %0, fpsr" : "=r"(saved.status));
    __asm__ volatile("msr fpcr, %0" ::"r"((uint64_t)0));
    return saved;
}
void csm_fp_leave(csm_fp_environment saved) {
    __asm__ volatile("msr fpcr, %0" ::"r"(saved.control));
    __asm__ volatile("msr fpsr, %0" ::"r"(saved.status));
}
#else
csm_fp_environment csm_fp_enter(void) {
    csm_fp_environment none = {0, 0};
    return none;
}
void csm_fp_leave(csm_fp_environment saved) { (void)saved; }
#endif
