/* The compute type float: its vocabulary V(name) and the constants of its exp. */
#define V(name) v32_##name
#define REAL float
#define EXP_MANTISSA 23
#define EXP_EXPONENT_BIAS 127
#define EXP_BIAS 60      /* B */
#define EXP_UNBIAS 0x1p-60
#define EXP_SAFE 30      /* 1 / sum e' times 2^-30 is a normal number */
#define EXP_SUM_START 0x1p61 /* at least the largest e', 1.42 2^B */
#define EXP_SMALL_MEAN 0x1p39 /* smaller ones are added without EXP_SUM_START: sum.inc.h */
#define EXP_MAGIC 0x1.8p23
#define EXP_MOST 0x1.fffffep127
#define EXP_LOG2E 0x1.715476p0
#define EXP_LN2_HI 0x1.62e430p-1
#define EXP_LN2_LO -0x1.05c610p-29
#define EXP_SMALL 0x1p-40
#define EXP_LARGEST_LOG 46
