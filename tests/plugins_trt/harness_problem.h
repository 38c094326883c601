/* What both harnesses run: scans with their fields and inputs, and what they must return, computed token by
 * token in double precision. Values of the activations have few enough bits for every type, so that inputs
 * are exact.
 */
#ifndef VIDEOSSM_TESTS_HARNESS_PROBLEM_H
#define VIDEOSSM_TESTS_HARNESS_PROBLEM_H

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "plugin/scan.h"

namespace videossm::harness {

struct Tensor {
    std::string name;
    Shape shape;
    ElementType type = ElementType::FP32;
    std::vector<unsigned char> bytes;

    size_t count() const;
    std::vector<double> values() const;
};

/* A tensor of NaN. */
Tensor poisoned(const std::string& name, const Shape& shape, ElementType type);

struct Problem {
    std::string name;  // kind/variant/type
    const ScanKind* kind = nullptr;
    std::vector<std::pair<std::string, float>> fields;
    ElementType activation = ElementType::FP32;
    std::vector<Tensor> inputs;
    std::vector<std::vector<double>> expected;  // of each output; empty: nothing may write it

    float field(const std::string& name) const;
};

/* Both scans, every option and every type of activations. */
std::vector<Problem> problems();

/* The fields as TensorRT hands them over; `values` holds them and must not change while they are read. */
struct FieldStore {
    explicit FieldStore(const Problem& problem);

    std::vector<float> numbers;
    std::vector<int32_t> flags;
    std::vector<Field> fields;
};

/* |got - expected| / |expected|; infinite for NaN, or if it is not of the same size. */
double relative_error(const std::vector<double>& got, const std::vector<double>& expected);
double tolerance(const Problem& problem, size_t output);

/* A way in which tensors may be wrong, and what the message must say. */
struct Mistake {
    std::string name;  // kind/what/tensor
    std::string message;
    enum class What { RANK, SIZE, TYPE, COUNT } what;
    std::function<void(Problem&)> make;
};

std::vector<Mistake> mistakes(const Problem& good);

/* A way in which fields may be wrong. */
struct WrongField {
    std::string name;  // kind/what/field
    std::string message;
    bool of_engine;
    std::vector<Field> fields;
};

/* They point into `store`. */
std::vector<WrongField> wrong_fields(const Problem& good, const FieldStore& store);

/* One JSON object, {"check": name, "ok": ..., "detail": ...}, on a line of stdout. */
void print_check(const std::string& name, bool ok, const std::string& detail);
std::string quoted(const std::string& text);

}  // namespace videossm::harness

#endif
