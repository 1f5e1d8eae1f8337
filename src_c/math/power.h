/* Logarithm, exponential and power of pairs of doubles to about 2^-100, in plain double arithmetic without contraction,
 * so that every unit and every compiler produces the same bits.  A power costs about nine times csm_pow.
 *
 * log: u = 2^k f, sqrt(1/2) <= f < sqrt 2, i = round(64 f): log(i / 64) from a table, and 2 atanh(s),
 * s = (f - i/64) / (f + i/64), |s| <= 0.0056, as a series.
 * exp: w = n ln 2 + i / 64 + r, |r| <= 1/128: e^(i/64) from a table, and the series of e^r - 1.
 * Largest relative error measured (6,000 random numbers of every magnitude, against mpmath): log 2^-104, log1p 2^-102,
 * exp 2^-105, e^w - 1 2^-100.
 */
#ifndef CSM_MATH_POWER_H
#define CSM_MATH_POWER_H

#include "pair.h"

static const double csm_log_of[47][2] = {
    /* log(i / 64), i = 45 .. 91, as pairs */
    {-0x1.68ac83e9c6a14p-2, -0x1.a64eadd740178p-58}, {-0x1.522ae0738a3d8p-2, 0x1.8f7e9b38a6979p-57},
    {-0x1.3c25277333184p-2, 0x1.2ad27e50a8ec6p-56},  {-0x1.269621134db92p-2, -0x1.e0efadd9db02bp-56},
    {-0x1.1178e8227e47cp-2, 0x1.0e63a5f01c691p-57},  {-0x1.f991c6cb3b379p-3, -0x1.f665066f980a2p-57},
    {-0x1.d1037f2655e7bp-3, -0x1.60629242471a2p-57}, {-0x1.a93ed3c8ad9e3p-3, -0x1.bcafa9de97203p-57},
    {-0x1.823c16551a3c2p-3, 0x1.1232ce70be781p-57},  {-0x1.5bf406b543db2p-3, 0x1.1f5b44c0df7e7p-61},
    {-0x1.365fcb0159016p-3, -0x1.7d411a5b944adp-58}, {-0x1.1178e8227e47cp-3, 0x1.0e63a5f01c691p-58},
    {-0x1.da727638446a2p-4, -0x1.401fa71733019p-58}, {-0x1.9335e5d594989p-4, 0x1.478a85704ccb7p-58},
    {-0x1.4d3115d207eacp-4, -0x1.769f42c7842ccp-58}, {-0x1.08598b59e3a07p-4, 0x1.dd7009902bf32p-58},
    {-0x1.894aa149fb343p-5, -0x1.a8be97660a23dp-60}, {-0x1.0415d89e74444p-5, -0x1.c05cf1d753622p-59},
    {-0x1.0205658935847p-6, -0x1.27c8e8416e71fp-60}, {0, 0},
    {0x1.fc0a8b0fc03e4p-7, -0x1.83092c59642a1p-62},  {0x1.f829b0e783300p-6, 0x1.33e3f04f1ef23p-60},
    {0x1.77458f632dcfcp-5, 0x1.18d3ca87b9296p-59},   {0x1.f0a30c01162a6p-5, 0x1.85f325c5bbacdp-59},
    {0x1.341d7961bd1d1p-4, -0x1.b599f227becbbp-58},  {0x1.6f0d28ae56b4cp-4, -0x1.906d99184b992p-58},
    {0x1.a926d3a4ad563p-4, 0x1.942f48aa70ea9p-58},   {0x1.e27076e2af2e6p-4, -0x1.61578001e0162p-60},
    {0x1.0d77e7cd08e59p-3, 0x1.9a5dc5e9030acp-57},   {0x1.29552f81ff523p-3, 0x1.301771c407dbfp-57},
    {0x1.44d2b6ccb7d1ep-3, 0x1.9f4f6543e1f88p-57},   {0x1.5ff3070a793d4p-3, -0x1.bc60efafc6f6ep-58},
    {0x1.7ab890210d909p-3, 0x1.be36b2d6a0608p-59},   {0x1.9525a9cf456b4p-3, 0x1.d904c1d4e2e26p-57},
    {0x1.af3c94e80bff3p-3, -0x1.398cff3641985p-58},  {0x1.c8ff7c79a9a22p-3, -0x1.4f689f8434012p-57},
    {0x1.e27076e2af2e6p-3, -0x1.61578001e0162p-59},  {0x1.fb9186d5e3e2bp-3, -0x1.caaae64f21acbp-57},
    {0x1.0a324e27390e3p-2, 0x1.7dcfde8061c03p-56},   {0x1.1675cababa60ep-2, 0x1.ce63eab883717p-61},
    {0x1.22941fbcf7966p-2, -0x1.76f5eb09628afp-56},  {0x1.2e8e2bae11d31p-2, -0x1.8f4cdb95ebdf9p-56},
    {0x1.3a64c556945eap-2, -0x1.c68651945f97cp-57},  {0x1.4618bc21c5ec2p-2, 0x1.f42decdeccf1dp-56},
    {0x1.51aad872df82dp-2, 0x1.3927ac19f55e3p-59},   {0x1.5d1bdbf5809cap-2, 0x1.4236383dc7fe1p-56},
    {0x1.686c81e9b14afp-2, -0x1.ddea0f7f58e3dp-57}};
static const double csm_exp_of[47][2] = {
    /* e^(i / 64), i = -23 .. 23, as pairs */
    {0x1.656f00bf5796ap-1, 0x1.93e6dd6872d13p-55},  {0x1.6b0ff72deb89dp-1, -0x1.dabf5975c0c02p-57},
    {0x1.70c79eba33c07p-1, -0x1.58b71227465a1p-55}, {0x1.769652df22f7ep-1, 0x1.3445f7544e0efp-57},
    {0x1.7c7c70887763cp-1, -0x1.09aa682553231p-60}, {0x1.827a561889716p-1, -0x1.6b2eab63020c1p-57},
    {0x1.8890636e31f54p-1, 0x1.d9c29d8d982edp-56},  {0x1.8ebef9eac820bp-1, -0x1.797d4686c5393p-57},
    {0x1.95067c78379f2p-1, 0x1.f483a3e8cd60fp-55},  {0x1.9b674f8f2f3d8p-1, -0x1.51bfdbb129094p-55},
    {0x1.a1e1d93d687d0p-1, 0x1.e3a6bdaece8f9p-58},  {0x1.a876812c0877cp-1, -0x1.fd36226fadd44p-56},
    {0x1.af25b0a61a7b5p-1, -0x1.676a52a1a618bp-55}, {0x1.b5efd29f24c26p-1, 0x1.3d5fd7d70a5edp-56},
    {0x1.bcd553b9d7b62p-1, 0x1.6ad4c353465b0p-61},  {0x1.c3d6a24ed8222p-1, -0x1.e1e0a76cb0685p-55},
    {0x1.caf42e73a4c7ep-1, -0x1.b5beee8bcee31p-55}, {0x1.d22e6a0197c03p-1, -0x1.32ae7bdaf1116p-55},
    {0x1.d985c89d041a3p-1, 0x1.8798de3138a56p-57},  {0x1.e0fabfbc702a4p-1, -0x1.8d0e700fcfb65p-56},
    {0x1.e88dc6afecfc0p-1, -0x1.38e62149c16e2p-55}, {0x1.f03f56a88b5d8p-1, -0x1.bad3fd501a227p-55},
    {0x1.f80feabfeefa5p-1, -0x1.b60bbd08aac55p-55}, {0x1p+0, 0},
    {0x1.04080ab55de39p+0, 0x1.7ab864b3e9045p-56},  {0x1.08205601127edp+0, -0x1.9c7d0bdf15160p-54},
    {0x1.0c49236829e8cp+0, -0x1.eb6980ce14da7p-55}, {0x1.1082b577d34edp+0, 0x1.f56c680678897p-54},
    {0x1.14cd4fc989cd6p+0, 0x1.1557a8671b89ep-54},  {0x1.192937074e0cdp+0, 0x1.a24f46336ea04p-54},
    {0x1.1d96b0eff0e79p+0, 0x1.e8ac7a4d3206cp-55},  {0x1.2216045b6f5cdp+0, -0x1.8c4a5df1ec7e5p-58},
    {0x1.26a7793f60164p+0, 0x1.5aeb9860044d0p-55},  {0x1.2b4b58b372c79p+0, 0x1.404dd9f031676p-54},
    {0x1.3001ecf601af7p+0, 0x1.7ab912c69ffebp-61},  {0x1.34cb8170b5835p+0, 0x1.6a7062465be33p-55},
    {0x1.39a862bd3c106p+0, 0x1.7dd1a79cbd0fcp-54},  {0x1.3e98deaa11dccp+0, -0x1.5722108fefcffp-54},
    {0x1.439d443f5f159p+0, -0x1.1c5b2e8735a43p-56}, {0x1.48b5e3c3e8186p+0, 0x1.9d9ef0eda6eabp-54},
    {0x1.4de30ec211e60p+0, 0x1.3b5223eca1712p-56},  {0x1.5325180cfacf7p+0, 0x1.b28b660a648dap-54},
    {0x1.587c53c5a7af0p+0, 0x1.3b0e93c017937p-55},  {0x1.5de9176045ff5p+0, 0x1.da89923298baap-55},
    {0x1.636bb9a983258p+0, 0x1.349cc31f7248dp-54},  {0x1.690492cbf9433p+0, -0x1.812833f7d6e43p-55},
    {0x1.6eb3fc55b1e76p+0, -0x1.2d8a6cc888d03p-54}};

/* ln 2 in three parts, the first with 13 zero bits. */
#define CSM_LN2_HIGH 0x1.62e42fefa2p-1
#define CSM_LN2_MIDDLE 0x1.9ef35793c7673p-41
#define CSM_LN2_LOW 0x1.f97b57a079a19p-103

INLINE csm_pair csm_pair_add(csm_pair a, csm_pair b) {
    double s = a.hi, low = 0;
    csm_two_sum(&s, &low, b.hi);
    low += a.lo + b.lo;
    const double sum = s + low;
    return csm_pair_of(sum, low - (sum - s));
}
INLINE csm_pair csm_pair_plus(csm_pair a, double b) { return csm_pair_add(a, csm_pair_of(b, 0)); }
INLINE csm_pair csm_pair_minus(csm_pair a) { return csm_pair_of(-a.hi, -a.lo); }
INLINE csm_pair csm_pair_times(csm_pair a, double b) { return csm_pair_mul(a, csm_pair_of(b, 0)); }

/* k ln 2 + log(i / 64) + log((f + above) / (i / 64)), above = the numerator f - i / 64, below = f + i / 64. */
static inline csm_pair csm_pair_log_from(double k, int i, csm_pair above, csm_pair below) {
    const csm_pair s = csm_pair_div(above, below), z = csm_pair_mul(s, s);
    const double rest = fma(z.hi, fma(z.hi, 0x1.3b13b13b13b14p-4, 0x1.745d1745d1746p-4), 0x1.c71c71c71c71cp-4);
    csm_pair series = csm_pair_add(csm_pair_of(0x1.2492492492492p-3, 0x1.2492492492492p-57), csm_pair_times(z, rest));
    series = csm_pair_add(csm_pair_of(0x1.999999999999ap-3, -0x1.999999999999ap-57), csm_pair_mul(z, series));
    series = csm_pair_add(csm_pair_of(0x1.5555555555555p-2, 0x1.5555555555555p-56), csm_pair_mul(z, series));
    series = csm_pair_mul(z, series);
    const csm_pair twice = csm_pair_of(2 * s.hi, 2 * s.lo);
    const csm_pair near = csm_pair_add(twice, csm_pair_mul(twice, series));
    if (k == 0 && i == 64) return near;
    const double middle = k * CSM_LN2_MIDDLE;
    csm_pair far = csm_pair_of(k * CSM_LN2_HIGH, 0);
    far = csm_pair_add(far, csm_pair_of(middle, fma(k, CSM_LN2_MIDDLE, -middle) + k * CSM_LN2_LOW));
    far = csm_pair_add(far, csm_pair_of(csm_log_of[i - 45][0], csm_log_of[i - 45][1]));
    return csm_pair_add(far, near);
}
/* log u, u > 0 and finite. */
static inline csm_pair csm_pair_log(csm_pair u) {
    uint64_t bits;
    double k = 0;
    if (u.hi < 0x1p-900) {
        u = csm_pair_of(u.hi * 0x1p200, u.lo * 0x1p200);
        k = -200;
    }
    memcpy(&bits, &u.hi, 8);
    bits += 0x3ff0000000000000u - 0x3fe6a09e667f3bcdu;
    const double f = csm_double_of((bits & 0xfffffffffffffu) + 0x3fe6a09e667f3bcdu);
    const double exponent = (double)((int64_t)(bits >> 52) - 1023);
    const double low = u.lo * csm_pow2(-exponent);
    const int i = (int)(f * 64 + 0.5);
    const double c = i * 0x1p-6;
    return csm_pair_log_from(k + exponent, i, csm_pair_plus(csm_pair_of(f - c, low), 0),
                             csm_pair_plus(csm_pair_of(f, low), c));
}
/* log(1 + v), v > -1: relative to log(1 + v), however small v is. */
static inline csm_pair csm_pair_log1p(csm_pair v) {
    const csm_pair u = csm_pair_plus(v, 1);
    if (v.hi > -0x1p-7 && v.hi < 0x1p-7) return csm_pair_log_from(0, 64, v, csm_pair_plus(v, 2));
    return csm_pair_log(u);
}
/* e^w - less, where less is 0 or 1, relative to the result; NaN where w is NaN. */
static inline csm_pair csm_pair_exp(csm_pair w, const int less) {
    if (!(w.hi >= -745.2)) return csm_pair_of(w.hi == w.hi ? -less : CSM_NAN, 0);
    if (w.hi > 709.7) return csm_pair_of(CSM_INF, 0);
    const double n = (w.hi * 0x1.71547652b82fep+0 + 0x1.8p52) - 0x1.8p52;
    const double i = (fma(-n, 0x1.62e42fefa39efp-1, w.hi) * 64 + 0x1.8p52) - 0x1.8p52;
    const double middle = n * CSM_LN2_MIDDLE;
    csm_pair r = csm_pair_add(w, csm_pair_of(-n * CSM_LN2_HIGH, 0));
    r = csm_pair_plus(r, -i * 0x1p-6);
    r = csm_pair_add(r, csm_pair_of(-middle, -fma(n, CSM_LN2_MIDDLE, -middle) - n * CSM_LN2_LOW));
    double rest = fma(r.hi, fma(r.hi, 0x1.ae64567f544e4p-26, 0x1.27e4fb7789f5cp-22), 0x1.71de3a556c734p-19);
    rest = fma(r.hi, fma(r.hi, rest, 0x1.a01a01a01a01ap-16), 0x1.a01a01a01a01ap-13);
    csm_pair t = csm_pair_add(csm_pair_of(0x1.6c16c16c16c17p-10, -0x1.f49f49f49f49fp-65), csm_pair_times(r, rest));
    t = csm_pair_add(csm_pair_of(0x1.1111111111111p-7, 0x1.1111111111111p-63), csm_pair_mul(r, t));
    t = csm_pair_add(csm_pair_of(0x1.5555555555555p-5, 0x1.5555555555555p-59), csm_pair_mul(r, t));
    t = csm_pair_add(csm_pair_of(0x1.5555555555555p-3, 0x1.5555555555555p-57), csm_pair_mul(r, t));
    t = csm_pair_plus(csm_pair_mul(r, t), 0.5);
    t = csm_pair_add(r, csm_pair_mul(csm_pair_mul(r, r), t)); /* e^r - 1 */
    if (less && n == 0 && i == 0) return t;
    const int at = (int)i + 23;
    const csm_pair factor = csm_pair_of(csm_exp_of[at][0], csm_exp_of[at][1]);
    t = csm_pair_add(factor, csm_pair_mul(factor, t));
    const double first = n < -900 ? n + 200 : n - 1, second = n < -900 ? 0x1p-200 : 2;
    t = csm_pair_of(t.hi * csm_pow2(first) * second, t.lo * csm_pow2(first) * second);
    return less ? csm_pair_plus(t, -1) : t;
}

#endif
