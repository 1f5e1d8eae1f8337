/* The compute type double, whose macros replace those of float. */
#undef V
#undef REAL
#undef EXP_MANTISSA
#undef EXP_EXPONENT_BIAS
#undef EXP_BIAS
#undef EXP_UNBIAS
#undef EXP_SAFE
#undef EXP_SUM_START
#undef EXP_SMALL_MEAN
#undef EXP_MAGIC
#undef EXP_MOST
#undef EXP_LOG2E
#undef EXP_LN2_HI
#undef EXP_LN2_LO
#undef EXP_SMALL
#undef EXP_LARGEST_LOG
#define V(name) v64_##name
#define REAL double
#define EXP_MANTISSA 52
#define EXP_EXPONENT_BIAS 1023
#define EXP_BIAS 500
#define EXP_UNBIAS 0x1p-500
#define EXP_SAFE 450
#define EXP_SUM_START 0x1p501 /* at least the largest e', 1.42 2^B */
#define EXP_SMALL_MEAN 0x1p454 /* smaller ones are added without EXP_SUM_START: sum.inc.h */
#define EXP_MAGIC 0x1.8p52
#define EXP_MOST 0x1.fffffffffffffp1023
#define EXP_LOG2E 0x1.71547652b82fep+0
#define EXP_LN2_HI 0x1.62e42fefa39efp-1
#define EXP_LN2_LO 0x1.abc9e3b39803fp-56
#define EXP_SMALL 0x1p-400
#define EXP_LARGEST_LOG 350
