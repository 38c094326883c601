/* A scan's fields: the attributes of its ONNX node, as TensorRT hands them over and an engine keeps them. */
#ifndef VIDEOSSM_PLUGIN_FIELDS_H
#define VIDEOSSM_PLUGIN_FIELDS_H

#include <cstdint>
#include <string>
#include <vector>

namespace videossm {

enum class FieldType { FLOAT32, INT32, INT64, OTHER };

struct Field {
    const char* name;
    FieldType type;
    const void* data;
    int32_t length;
};

enum class FieldKind { NUMBER, FLAG };  // a finite FLOAT32; or 0 or 1, in INT32 or INT64
enum class Missing {
    REFUSED,
    ZERO,
    ONE
};  // what a field that a network leaves out is; an engine leaves out none

struct FieldSpec {
    const char* name;
    FieldKind kind;
    Missing missing;
};

struct FieldValue {
    float number = 0;
    int32_t flag = 0;
};

class Fields {
public:
    /* `specs` is kept by reference. Throws ScanError for a field that is missing, unknown, given twice or of
     * the wrong type or value. */
    Fields(const char* scan, const std::vector<FieldSpec>& specs, const std::vector<Field>& given,
           bool of_engine);

    const FieldValue& operator[](size_t index) const { return values_[index]; }
    float number(const char* name) const { return values_[index_of(name)].number; }
    bool flag(const char* name) const { return values_[index_of(name)].flag != 0; }

    /* `name=value`, a space between two: equal for equal fields only. */
    std::string description() const;

private:
    size_t index_of(const char* name) const;  // the number of fields, if there is none of that name
    void set(const char* scan, size_t index, const Field& field);
    std::string names() const;

    const std::vector<FieldSpec>* specs_;
    std::vector<FieldValue> values_;
};

}  // namespace videossm

#endif
