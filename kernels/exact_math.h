// Elementary functions in double from basic operations alone: the same bits whatever C library and
// processor, unlike libm's, which choose another algorithm where there is a fused multiply-add.
// For tables computed once and for one value per row; kernels have their own vector polynomials.
#ifndef BLOCKSERVE_KERNELS_EXACT_MATH_H_
#define BLOCKSERVE_KERNELS_EXACT_MATH_H_

namespace blockserve {

// Natural logarithm, within 2 ulp; `x` positive, finite and normal.
double ExactLog(double x);
// Within 2 ulp for |x| <= 700.
double ExactExp(double x);
// Absolute error below 1e-15 for |x| <= 1e6, growing with |x| above.
void ExactSinCos(double x, double* sin_x, double* cos_x);

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_EXACT_MATH_H_
