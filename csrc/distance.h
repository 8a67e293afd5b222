// Channel-normalised squared distance of one pixel's student and teacher vectors, shared by CPU and CUDA:
//   d = sum_c (a_c / |a| - b_c / |b|)^2,   |x| = max(sqrt(sum_c x_c^2), eps)      (as F.normalize)
// The difference form keeps 3e-6 relative accuracy where 2 - 2 cos would lose all digits.
#pragma once

#include <cfloat>
#include <cmath>

#include "macros.h"

namespace stadfast {

template <class A>
SF_HOST_DEVICE A inverse_norm(A sum_of_squares, A eps) {
  const A norm = std::sqrt(sum_of_squares);
  return A(1) / (norm > eps ? norm : eps);
}

template <class A>
SF_HOST_DEVICE A normalised_difference(A a, A inverse_a, A b, A inverse_b) {
  return a * inverse_a - b * inverse_b;
}

// d(d)/d(a_c) = 2 / |a| * (e_c - a^_c * along),  along = sum_k a^_k e_k,  e = a^ - b^,  a^ = a / |a|.
template <class A>
SF_HOST_DEVICE A along_term(A a, A inverse_a, A b, A inverse_b) {
  return a * inverse_a * normalised_difference(a, inverse_a, b, inverse_b);
}

// A vector below eps is divided by the constant eps, so that the second term vanishes. (1 / eps) * eps may round to
// a little less than 1.
template <class A>
SF_HOST_DEVICE A projection_gain(A inverse_a, A eps) {
  constexpr A below_one = A(1) - 4 * A(sizeof(A) == sizeof(double) ? DBL_EPSILON : FLT_EPSILON);
  return inverse_a * eps < below_one ? A(1) : A(0);
}

// `factor`: 2 / |a| times the gradient that arrives at d.
template <class A>
SF_HOST_DEVICE A gradient_term(A a, A inverse_a, A b, A inverse_b, A along, A factor) {
  return factor * (normalised_difference(a, inverse_a, b, inverse_b) - a * inverse_a * along);
}

}  // namespace stadfast
