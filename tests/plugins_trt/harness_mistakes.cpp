#include <algorithm>
#include <cstring>
#include <limits>

#include "harness_problem.h"

namespace videossm::harness {

std::vector<Mistake> mistakes(const Problem& good) {
    using What = Mistake::What;
    std::vector<Mistake> all;
    const std::string kind = good.kind->name;
    const auto add = [&](What what, const char* label, size_t input, const std::string& detail,
                         const std::string& got, const std::function<void(Tensor&)>& change) {
        const std::string name = good.kind->inputs[input].name;
        all.push_back({kind + "/" + label + "/" + name + detail, kind + ": " + name + ": got " + got, what,
                       [input, change](Problem& problem) { change(problem.inputs[input]); }});
    };
    for (size_t i = 0; i < good.inputs.size(); ++i) {
        const TensorSpec& spec = good.kind->inputs[i];
        const int rank = good.inputs[i].shape.rank;
        add(What::RANK, "rank", i, "",
            "rank " + std::to_string(rank - 1) + ", expected " + std::to_string(rank),
            [](Tensor& tensor) { tensor.shape.rank -= 1; });
        add(What::RANK, "rank", i, "+",
            "rank " + std::to_string(rank + 1) + ", expected " + std::to_string(rank),
            [](Tensor& tensor) { tensor.shape.size[static_cast<size_t>(tensor.shape.rank++)] = 1; });
        add(What::TYPE, "type", i, "",
            spec.role == Role::SINGLE ? "type fp16, expected fp32; cast it" : "type int8, expected fp",
            [&spec](Tensor& tensor) {
                tensor.type = spec.role == Role::SINGLE ? ElementType::FP16 : ElementType::INT8;
            });
        for (size_t j = 0; j < static_cast<size_t>(rank); ++j) {
            const char axis = spec.axes[j];
            add(What::SIZE, "size", i, std::string(".") + axis + "0", "",
                [j](Tensor& tensor) { tensor.shape.size[j] = 0; });
            const auto has_axis = [axis](const TensorSpec& other) {
                return std::strchr(other.axes, axis) != nullptr;
            };
            if (std::any_of(good.kind->inputs.begin(),
                            good.kind->inputs.begin() + static_cast<std::ptrdiff_t>(i), has_axis)) {
                const int64_t size = good.inputs[i].shape.size[j];
                const std::string name = axis == 'K' ? "d_k" : axis == 'V' ? "d_v" : std::string(1, axis);
                add(What::SIZE, "size", i, std::string(".") + axis, name + " = " + std::to_string(size + 1),
                    [j](Tensor& tensor) { tensor.shape.size[j] += 1; });
            }
        }
    }
    const size_t count = good.inputs.size();  // with the last one read
    all.push_back(
        {kind + "/count/inputs",
         kind + ": inputs: got " + std::to_string(count - 1) + ", expected " + std::to_string(count),
         What::COUNT, [](Problem& problem) { problem.inputs.pop_back(); }});
    all.push_back({kind + "/count/inputs+", kind + ": inputs: got 10, expected ", What::COUNT,
                   [](Problem& problem) { problem.inputs.resize(10, problem.inputs[0]); }});
    return all;
}

std::vector<WrongField> wrong_fields(const Problem& good, const FieldStore& store) {
    static const float infinite = std::numeric_limits<float>::infinity();
    static const int32_t two[] = {2, 1};
    static const int64_t wide = int64_t{1} << 32;
    const std::string kind = good.kind->name;
    const std::vector<Field>& fields = store.fields;
    std::vector<WrongField> all;
    const auto add = [&](const std::string& what, const std::string& field, const std::string& message,
                         std::vector<Field> changed, bool of_engine = false) {
        all.push_back(
            {kind + "/" + what + "/" + field, kind + ": field " + message, of_engine, std::move(changed)});
    };
    for (size_t i = 0; i < fields.size(); ++i) {
        const FieldSpec& spec = good.kind->fields[i];
        const std::string name = spec.name;
        const bool is_number = spec.kind == FieldKind::NUMBER;
        const auto with = [&](const Field& field) {
            std::vector<Field> changed = fields;
            changed[i] = field;
            return changed;
        };
        std::vector<Field> without = fields;
        without.erase(without.begin() + static_cast<std::ptrdiff_t>(i));
        if (spec.missing == Missing::REFUSED) {
            add("missing", name, name + ": got none, expected one; lower", without);
        }
        add("missing-in-engine", name, name + ": got none, expected one; build", without, true);
        add("type", name, name + ": got type another, expected " + (is_number ? "float32" : "int32"),
            with({spec.name, FieldType::OTHER, fields[i].data, 1}));
        add("kind", name, name + ": got type " + (is_number ? "int32" : "float32"),
            with({spec.name, is_number ? FieldType::INT32 : FieldType::FLOAT32, fields[i].data, 1}));
        add("values", name, name + ": got 2 values, expected 1", with({spec.name, fields[i].type, two, 2}));
        add("null", name, name + ": got no values, expected 1",
            with({spec.name, fields[i].type, nullptr, 1}));
        std::vector<Field> twice = fields;
        twice.push_back(fields[i]);
        add("twice", name, name + ": got it twice", twice);
        if (is_number) {
            add("range", name, name + ": got inf, expected a finite number",
                with({spec.name, FieldType::FLOAT32, &infinite, 1}));
        } else {
            add("range", name, name + ": got 2, expected 0 or 1",
                with({spec.name, FieldType::INT32, two, 1}));
            add("range-int64", name, name + ": got 4294967296, expected 0 or 1",
                with({spec.name, FieldType::INT64, &wide, 1}));
        }
    }
    std::vector<Field> unknown = fields;
    unknown.push_back({"unknown", FieldType::INT32, two, 1});
    add("unknown", "unknown", "'unknown': got one that is not known, expected", unknown);
    std::vector<Field> nameless = fields;
    nameless.push_back({nullptr, FieldType::INT32, two, 1});
    add("unknown", "nameless", "'': got one that is not known, expected", nameless);
    return all;
}

}  // namespace videossm::harness
