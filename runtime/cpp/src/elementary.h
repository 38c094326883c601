// Logarithm, cosine and sine in double precision that are the same, bit for bit, on every processor: sums, products
// and quotients alone, in the order of runtime/elementary.py. Needs -ffp-contract=off.
#pragma once

namespace videossm::internal {

// Of positive, finite, normal numbers.
double exact_log(double x);

struct CosSin {
    double cosine, sine;
};

// Of 2 pi `turns`, which are from 0 to 1.
CosSin exact_cos_sin(double turns);

}  // namespace videossm::internal
