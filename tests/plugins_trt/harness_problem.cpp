#include "harness_problem.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <map>
#include <random>

namespace videossm::harness {
namespace {

constexpr int BATCH = 2;
constexpr int TOKENS = 37;
constexpr int HEADS = 3;
constexpr int KEY_DIM = 16;
constexpr int VALUE_DIM = 24;
constexpr int CHANNELS = 10;
constexpr int STATE_DIM = 8;

using Values = std::vector<double>;

size_t bytes_of(ElementType type) { return type == ElementType::FP32 ? 4 : 2; }

void encode(double value, ElementType type, unsigned char* bytes) {
    const auto single = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &single, sizeof bits);
    uint16_t half = static_cast<uint16_t>(bits >> 16);  // bf16; the lower bits are 0
    if (type == ElementType::FP32) {
        std::memcpy(bytes, &bits, sizeof bits);
        return;
    }
    if (type == ElementType::FP16) {
        const uint32_t magnitude = bits & 0x7fffffffu;
        half = static_cast<uint16_t>(bits >> 16 & 0x8000u);
        if (std::isnan(value)) {
            half = 0x7e00;
        } else if (magnitude) {
            half = static_cast<uint16_t>(half | (magnitude - (112u << 23)) >>
                                                    13);  // the exponent's bias is 15, not 127
        }
    }
    std::memcpy(bytes, &half, sizeof half);
}

double decode(const unsigned char* bytes, ElementType type) {
    uint16_t half;
    std::memcpy(&half, bytes, sizeof half);
    if (type == ElementType::FP16) {
        const int exponent = half >> 10 & 31;
        const int mantissa = half & 1023;
        const double magnitude = exponent == 31  ? (mantissa ? std::nan("") : HUGE_VAL)
                                 : exponent == 0 ? std::ldexp(mantissa, -24)
                                                 : std::ldexp(1024 + mantissa, exponent - 25);
        return half & 0x8000 ? -magnitude : magnitude;
    }
    uint32_t bits = uint32_t{half} << 16;
    if (type == ElementType::FP32) {
        std::memcpy(&bits, bytes, sizeof bits);
    }
    float single;
    std::memcpy(&single, &bits, sizeof single);
    return double{single};
}

Tensor encoded(const std::string& name, const Shape& shape, ElementType type, const Values& values) {
    Tensor tensor{name, shape, type, std::vector<unsigned char>(values.size() * bytes_of(type))};
    for (size_t i = 0; i < values.size(); ++i) {
        encode(values[i], type, tensor.bytes.data() + i * bytes_of(type));
    }
    return tensor;
}

Shape shape_of(const TensorSpec& spec, const std::map<char, int64_t>& sizes) {
    Shape shape;
    for (const char* axis = spec.axes; *axis; ++axis) {
        shape.size[static_cast<size_t>(shape.rank++)] = sizes.at(*axis);
    }
    return shape;
}

size_t count_of(const Shape& shape) {
    size_t count = 1;
    for (int i = 0; i < shape.rank; ++i) {
        count *= static_cast<size_t>(shape.size[static_cast<size_t>(i)]);
    }
    return count;
}

/* Multiples of 1/64 from low to high, high excluded: 7 bits, which bf16 has. */
Values random_values(size_t count, double low, double high, std::mt19937& random) {
    const auto steps = static_cast<uint32_t>((high - low) * 64);
    Values values(count);
    for (double& value : values) {
        value = low + static_cast<double>(random() % steps) / 64;
    }
    return values;
}

void normalize(double* vector, int size) {
    double sum = 0;
    for (int i = 0; i < size; ++i) {
        sum += vector[i] * vector[i];
    }
    for (int i = 0; i < size; ++i) {
        vector[i] /= std::max(std::sqrt(sum), 1e-12);
    }
}

void add_expected_gated_delta(Problem& problem) {
    std::vector<Values> in;
    for (const Tensor& tensor : problem.inputs) {
        in.push_back(tensor.values());
    }
    Values output(BATCH * TOKENS * HEADS * VALUE_DIM);
    Values state = in[5];
    for (size_t row = 0; row < BATCH * TOKENS * HEADS;
         ++row) {  // rows of a head are in the order of its tokens
        const size_t head = row / (TOKENS * HEADS) * HEADS + row % HEADS;
        double* const s = state.data() + head * KEY_DIM * VALUE_DIM;
        Values query(in[0].data() + row * KEY_DIM, in[0].data() + (row + 1) * KEY_DIM);
        Values key(in[1].data() + row * KEY_DIM, in[1].data() + (row + 1) * KEY_DIM);
        if (problem.field("normalize_query") > 0) {
            normalize(query.data(), KEY_DIM);
        }
        if (problem.field("normalize_key") > 0) {
            normalize(key.data(), KEY_DIM);
        }
        for (size_t v = 0; v < VALUE_DIM; ++v) {
            double seen = 0;
            for (size_t k = 0; k < KEY_DIM; ++k) {
                s[k * VALUE_DIM + v] *= std::exp(in[3][row]);
                seen += s[k * VALUE_DIM + v] * key[k];
            }
            for (size_t k = 0; k < KEY_DIM; ++k) {
                s[k * VALUE_DIM + v] += key[k] * in[4][row] * (in[2][row * VALUE_DIM + v] - seen);
                output[row * VALUE_DIM + v] +=
                    double{problem.field("scale")} * s[k * VALUE_DIM + v] * query[k];
            }
        }
    }
    problem.expected = {problem.field("want_output") > 0 ? output : Values{}, state};
}

void add_expected_selective(Problem& problem) {
    std::map<std::string, Values> in;
    for (const Tensor& tensor : problem.inputs) {
        in[tensor.name] = tensor.values();
    }
    Values output(BATCH * CHANNELS * TOKENS);
    Values state = in["state"];
    for (size_t row = 0; row < BATCH * CHANNELS; ++row) {
        const size_t batch = row / CHANNELS;
        const size_t channel = row % CHANNELS;
        for (size_t t = 0; t < TOKENS; ++t) {
            const double u = in["u"][row * TOKENS + t];
            double step = in["delta"][row * TOKENS + t];
            step += problem.field("has_delta_bias") > 0 ? in["delta_bias"][channel] : 0;
            step = problem.field("delta_softplus") > 0 ? std::log1p(std::exp(step)) : step;
            double y = problem.field("has_D") > 0 ? in["D"][channel] * u : 0;
            for (size_t n = 0; n < STATE_DIM; ++n) {
                const size_t column = (batch * STATE_DIM + n) * TOKENS + t;
                double& x = state[row * STATE_DIM + n];
                x = std::exp(step * in["A"][channel * STATE_DIM + n]) * x + step * in["B"][column] * u;
                y += in["C"][column] * x;
            }
            const double z = problem.field("has_z") > 0 ? in["z"][row * TOKENS + t] : 0;
            output[row * TOKENS + t] = problem.field("has_z") > 0 ? y * z / (1 + std::exp(-z)) : y;
        }
    }
    problem.expected = {problem.field("want_output") > 0 ? output : Values{}, state};
}

struct Variant {
    const char* name;
    std::vector<std::pair<std::string, float>> fields;
};

std::vector<Variant> variants_of_gated_delta() {
    const auto fields = [](float normalize_key, float normalize_query, float want_output, float in_place) {
        return std::vector<std::pair<std::string, float>>{{"scale", 0.5f},
                                                          {"normalize_key", normalize_key},
                                                          {"normalize_query", normalize_query},
                                                          {"want_output", want_output},
                                                          {"state_in_place", in_place}};
    };
    return {{"plain", fields(0, 0, 1, 0)},
            {"normalized", fields(1, 1, 1, 0)},
            {"state-only", fields(1, 0, 0, 0)},
            {"in-place", fields(0, 0, 1, 1)}};
}

std::vector<Variant> variants_of_selective() {
    const auto fields = [](float softplus, float d, float z, float bias, float want_output, float in_place) {
        return std::vector<std::pair<std::string, float>>{{"delta_softplus", softplus},
                                                          {"has_D", d},
                                                          {"has_z", z},
                                                          {"has_delta_bias", bias},
                                                          {"want_output", want_output},
                                                          {"state_in_place", in_place}};
    };
    return {{"plain", fields(0, 0, 0, 0, 1, 0)},
            {"all", fields(1, 1, 1, 1, 1, 0)},
            {"placeholders", fields(1, 0, 0, 1, 1, 0)},
            {"state-only", fields(1, 1, 1, 1, 0, 0)},
            {"in-place", fields(1, 1, 0, 0, 1, 1)}};
}

Problem made(const ScanKind& kind, const Variant& variant, ElementType type) {
    Problem problem;
    problem.name = std::string(kind.name) + "/" + variant.name + "/" + name_of(type);
    problem.kind = &kind;
    problem.fields = variant.fields;
    problem.activation = type;
    const bool is_gated = &kind == &gated_delta_scan();
    const std::map<char, int64_t> sizes =
        is_gated ? std::map<char, int64_t>{{'B', BATCH},
                                           {'T', TOKENS},
                                           {'H', HEADS},
                                           {'K', KEY_DIM},
                                           {'V', VALUE_DIM}}
                 : std::map<char, int64_t>{{'B', BATCH}, {'D', CHANNELS}, {'T', TOKENS}, {'N', STATE_DIM}};
    // Where they differ from -1 to 1: gates, step sizes and A.
    const std::map<std::string, std::pair<double, double>> ranges{
        {"key", {-0.375, 0.375}}, {"decay", {-1, 0}}, {"beta", {0, 1}}, {"A", {-1, 0}}, {"delta", {0, 0.5}}};
    std::mt19937 random(7);
    for (const TensorSpec& spec : kind.inputs) {
        const Shape shape = shape_of(spec, sizes);
        const auto range = ranges.count(spec.name) ? ranges.at(spec.name) : std::pair<double, double>{-1, 1};
        const Values values = random_values(count_of(shape), range.first, range.second, random);
        problem.inputs.push_back(
            encoded(spec.name, shape, spec.role == Role::ACTIVATION ? type : ElementType::FP32, values));
    }
    // As the lowering does: optional inputs that are not read are left out at the end, and elsewhere another
    // tensor of their type stands in their place.
    while (problem.inputs.size() > static_cast<size_t>(kind.required_inputs) &&
           problem.field(kind.inputs[problem.inputs.size() - 1].field) == 0) {
        problem.inputs.pop_back();
    }
    for (size_t i = static_cast<size_t>(kind.required_inputs); i < problem.inputs.size(); ++i) {
        if (problem.field(kind.inputs[i].field) == 0) {
            problem.inputs[i] = problem.inputs[kind.inputs[i].role == Role::ACTIVATION ? 0 : 2];
        }
    }
    is_gated ? add_expected_gated_delta(problem) : add_expected_selective(problem);
    return problem;
}

}  // namespace

size_t Tensor::count() const { return count_of(shape); }

Values Tensor::values() const {
    Values values(count());
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] = decode(bytes.data() + i * bytes_of(type), type);
    }
    return values;
}

Tensor poisoned(const std::string& name, const Shape& shape, ElementType type) {
    return encoded(name, shape, type, Values(count_of(shape), std::nan("")));
}

float Problem::field(const std::string& wanted) const {
    for (const auto& [field_name, value] : fields) {
        if (field_name == wanted) {
            return value;
        }
    }
    return 0;
}

std::vector<Problem> problems() {
    std::vector<Problem> all;
    for (const ElementType type : {ElementType::FP32, ElementType::FP16, ElementType::BF16}) {
        for (const Variant& variant : variants_of_gated_delta()) {
            all.push_back(made(gated_delta_scan(), variant, type));
        }
        for (const Variant& variant : variants_of_selective()) {
            all.push_back(made(selective_scan(), variant, type));
        }
    }
    return all;
}

FieldStore::FieldStore(const Problem& problem) {
    numbers.reserve(problem.fields.size());
    flags.reserve(problem.fields.size());
    for (size_t i = 0; i < problem.fields.size(); ++i) {
        const FieldSpec& spec = problem.kind->fields[i];
        numbers.push_back(problem.fields[i].second);
        flags.push_back(static_cast<int32_t>(problem.fields[i].second));
        if (spec.kind == FieldKind::NUMBER) {
            fields.push_back({spec.name, FieldType::FLOAT32, &numbers.back(), 1});
        } else {
            fields.push_back({spec.name, FieldType::INT32, &flags.back(), 1});
        }
    }
}

double relative_error(const Values& got, const Values& expected) {
    double error = 0;
    double size = 0;
    for (size_t i = 0; i < expected.size() && got.size() == expected.size(); ++i) {
        error += (got[i] - expected[i]) * (got[i] - expected[i]);
        size += expected[i] * expected[i];
    }
    const double relative = std::sqrt(error / size);
    return std::isfinite(relative) ? relative : std::numeric_limits<double>::infinity();
}

double tolerance(const Problem& problem, size_t output) {
    if (problem.kind->outputs[output].role == Role::SINGLE || problem.activation == ElementType::FP32) {
        return 1e-5;
    }
    return problem.activation == ElementType::FP16 ? 1e-3 : 1e-2;  // it is rounded once
}

std::string quoted(const std::string& text) {
    std::string result = "\"";
    for (const char c : text) {
        result += c == '"' || c == '\\' ? std::string("\\") + c : c == '\n' ? "\\n" : std::string(1, c);
    }
    return result + "\"";
}

void print_check(const std::string& name, bool ok, const std::string& detail) {
    std::printf("{\"check\": %s, \"ok\": %s, \"detail\": %s}\n", quoted(name).c_str(), ok ? "true" : "false",
                quoted(detail).c_str());
}

}  // namespace videossm::harness
