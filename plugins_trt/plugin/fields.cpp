#include "plugin/fields.h"

#include <cmath>
#include <cstdio>
#include <cstring>

#include "plugin/error.h"

namespace videossm {
namespace {

const char* name_of(FieldType type) {
    switch (type) {
        case FieldType::FLOAT32: return "float32";
        case FieldType::INT32: return "int32";
        case FieldType::INT64: return "int64";
        case FieldType::OTHER: break;
    }
    return "another";
}

bool fits(FieldKind kind, FieldType type) {
    return kind == FieldKind::NUMBER ? type == FieldType::FLOAT32
                                     : type == FieldType::INT32 || type == FieldType::INT64;
}

/* Copied: nothing says that TensorRT aligns what it hands over. */
template <typename Value>
Value read(const Field& field) {
    Value value;
    std::memcpy(&value, field.data, sizeof value);
    return value;
}

}  // namespace

Fields::Fields(const char* scan, const std::vector<FieldSpec>& specs, const std::vector<Field>& given,
               bool of_engine)
    : specs_(&specs), values_(specs.size()) {
    std::vector<bool> is_given(specs.size());
    for (const Field& field : given) {
        const std::string name = field.name ? field.name : "";
        const size_t index = index_of(name.c_str());
        if (index == specs.size()) {
            refuse(scan, "field '" + name + "': got one that is not known, expected " + names());
        }
        if (is_given[index]) {
            refuse(scan, "field " + name + ": got it twice, expected it once");
        }
        is_given[index] = true;
        set(scan, index, field);
    }
    for (size_t i = 0; i < specs.size(); ++i) {
        if (is_given[i]) {
            continue;
        }
        if (specs[i].missing == Missing::REFUSED || of_engine) {
            refuse(scan,
                   std::string("field ") + specs[i].name + ": got none, expected one; " +
                       (of_engine ? "build the engine again" : "lower the graph with the lowering `plugin`"));
        }
        values_[i].flag = specs[i].missing == Missing::ONE;
    }
}

void Fields::set(const char* scan, size_t index, const Field& field) {
    const FieldSpec& spec = (*specs_)[index];
    const std::string what = std::string("field ") + spec.name;
    if (!fits(spec.kind, field.type)) {
        refuse(scan, what + ": got type " + name_of(field.type) + ", expected " +
                         (spec.kind == FieldKind::NUMBER ? "float32" : "int32"));
    }
    if (!field.data || field.length != 1) {
        refuse(scan,
               what + ": got " + (field.data ? std::to_string(field.length) : "no") + " values, expected 1");
    }
    if (spec.kind == FieldKind::NUMBER) {
        const auto number = read<float>(field);
        if (!std::isfinite(number)) {
            refuse(scan, what + ": got " + std::to_string(number) + ", expected a finite number");
        }
        values_[index].number = number;
        return;
    }
    const int64_t flag = field.type == FieldType::INT64 ? read<int64_t>(field) : read<int32_t>(field);
    if (flag != 0 && flag != 1) {
        refuse(scan, what + ": got " + std::to_string(flag) + ", expected 0 or 1");
    }
    values_[index].flag = static_cast<int32_t>(flag);
}

size_t Fields::index_of(const char* name) const {
    size_t index = 0;
    while (index < specs_->size() && std::strcmp((*specs_)[index].name, name) != 0) {
        ++index;
    }
    return index;
}

std::string Fields::names() const {
    std::string text;
    for (size_t i = 0; i < specs_->size(); ++i) {
        text += i == 0 ? "" : i + 1 == specs_->size() ? " or " : ", ";
        text += (*specs_)[i].name;
    }
    return text;
}

std::string Fields::description() const {
    std::string text;
    for (size_t i = 0; i < specs_->size(); ++i) {
        char value[32];
        if ((*specs_)[i].kind == FieldKind::NUMBER) {
            std::snprintf(value, sizeof value, "%.9g", double{values_[i].number});
        } else {
            std::snprintf(value, sizeof value, "%d", values_[i].flag);
        }
        text += std::string(i == 0 ? "" : " ") + (*specs_)[i].name + "=" + value;
    }
    return text;
}

}  // namespace videossm
