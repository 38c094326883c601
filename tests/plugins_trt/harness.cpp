/* Drives the plugins as TensorRT does, on host memory with the CPU library: creator, build, serialised
 * fields, runtime, enqueue. Prints one JSON object a line, the creators first; test_plugin_harness.py reads
 * them.
 */
#include <algorithm>
#include <cstdio>

#include "harness_layer.h"

namespace {

using namespace videossm::harness;
using videossm::ElementType;
using videossm::OUTPUTS;
using videossm::Shape;

std::string sizes_of(const DimsExprs& dims) {
    std::string text;
    for (int32_t i = 0; i < dims.nbDims; ++i) {
        const auto* const size = dims.d[i];
        text += (i ? "," : "") + (size->isConstant() ? std::to_string(size->getConstantValue()) : "?");
    }
    return text;
}

std::string sizes_of(const Dims& dims) {
    std::string text;
    for (int32_t i = 0; i < dims.nbDims; ++i) {
        text += (i ? "," : "") + std::to_string(dims.d[i]);
    }
    return text;
}
/* One combination of all types and formats may be taken: the one that the tensors have. */
std::string wrong_formats(Build& build, const Descs& descs) {
    auto tensors = descs.dynamic_in();
    const auto out = descs.dynamic_out();
    tensors.insert(tensors.end(), out.begin(), out.end());
    std::string wrong;
    for (size_t position = 0; position < tensors.size(); ++position) {
        const PluginTensorDesc own = tensors[position].desc;
        for (int type = 0; type < nvinfer1::EnumMax<DataType>(); ++type) {
            for (int format = 0; format < nvinfer1::EnumMax<TensorFormat>(); ++format) {
                tensors[position].desc.type = static_cast<DataType>(type);
                tensors[position].desc.format = static_cast<TensorFormat>(format);
                const bool takes = build.supportsFormatCombination(static_cast<int32_t>(position),
                                                                   tensors.data(), descs.inputs(), OUTPUTS);
                const bool may_start = static_cast<DataType>(type) == DataType::kFLOAT ||
                                       static_cast<DataType>(type) == DataType::kHALF ||
                                       static_cast<DataType>(type) == DataType::kBF16;
                const bool type_fits = position == 0 ? may_start : static_cast<DataType>(type) == own.type;
                if (takes != (type_fits && static_cast<TensorFormat>(format) == TensorFormat::kLINEAR)) {
                    wrong += std::to_string(position) + ":" + std::to_string(type) + ":" +
                             std::to_string(format) + " ";
                }
            }
        }
        tensors[position].desc = own;
    }
    return wrong;
}

std::string fields_of(nvinfer1::IPluginV3& plugin) {
    const PluginFieldCollection* const collection = runtime_of(plugin).getFieldsToSerialize();
    std::string text;
    for (int32_t i = 0; i < collection->nbFields; ++i) {
        const PluginField& field = collection->fields[i];
        text += std::string(i ? " " : "") + field.name + "=";
        if (field.type == PluginFieldType::kFLOAT32) {
            char number[32];
            std::snprintf(number, sizeof number, "%.9g", double{*static_cast<const float*>(field.data)});
            text += number;
        } else {
            text += std::to_string(*static_cast<const int32_t*>(field.data));
        }
    }
    return text;
}

/* From the fields that the plugin serialises, copied as an engine copies them. */
Plugin created_again(const std::string& kind, nvinfer1::IPluginV3& plugin) {
    const PluginFieldCollection* const collection = runtime_of(plugin).getFieldsToSerialize();
    std::vector<std::vector<unsigned char>> kept;
    std::vector<PluginField> fields;
    for (int32_t i = 0; i < collection->nbFields; ++i) {
        const PluginField& field = collection->fields[i];
        const auto* const data = static_cast<const unsigned char*>(field.data);
        kept.emplace_back(data, data + 4);
        fields.emplace_back(field.name, kept.back().data(), field.type, field.length);
    }
    const PluginFieldCollection copied{collection->nbFields, fields.data()};
    return Plugin(creator_of(kind).createPlugin("a name", &copied, TensorRTPhase::kRUNTIME));
}

/* Runs the scan; `in_place`: the last state takes the place of the state. Says what is wrong with the
 * outputs. */
std::string wrong_outputs(Runtime& runtime, Problem problem, const Descs& descs, size_t workspace_bytes,
                          bool in_place) {
    std::vector<const void*> inputs;
    for (const Tensor& tensor : problem.inputs) {
        inputs.push_back(tensor.bytes.data());
    }
    std::vector<Tensor> outputs;
    for (size_t i = 0; i < OUTPUTS; ++i) {
        Shape shape;
        shape.rank = descs.out[i].dims.nbDims;
        std::copy_n(descs.out[i].dims.d, shape.size.size(), shape.size.begin());
        const bool is_state = problem.kind->outputs[i].role == videossm::Role::SINGLE;
        outputs.push_back(poisoned("", shape, is_state ? ElementType::FP32 : problem.activation));
    }
    Tensor& state = problem.inputs[static_cast<size_t>(problem.kind->state_input)];
    void* const pointers[] = {outputs[0].bytes.data(),
                              in_place ? state.bytes.data() : outputs[1].bytes.data()};
    std::vector<unsigned char> workspace(workspace_bytes + 64, 0xab);
    const int32_t status = runtime.enqueue(descs.in.data(), descs.out.data(), inputs.data(), pointers,
                                           workspace_bytes ? workspace.data() : nullptr, nullptr);
    if (status != 0) {
        return "status " + std::to_string(status);
    }
    const bool stayed =
        std::all_of(workspace.end() - 64, workspace.end(), [](unsigned char c) { return c == 0xab; });
    std::string wrong = stayed ? "" : "wrote beyond the workspace ";
    for (size_t i = 0; i < OUTPUTS; ++i) {
        if (problem.expected[i].empty()) {
            const auto untouched = poisoned("", outputs[i].shape, outputs[i].type).bytes;
            wrong += outputs[i].bytes == untouched ? "" : "the placeholder was written ";
            continue;
        }
        const Tensor& output = i == 1 && in_place ? state : outputs[i];
        const double error = relative_error(output.values(), problem.expected[i]);
        if (!(error <= tolerance(problem, i))) {
            wrong += problem.kind->outputs[i].name + std::string(" has relative error ") +
                     std::to_string(error) + " ";
        }
    }
    return wrong;
}

void check_problem(const Problem& problem) {
    const auto check = [&](const char* stage, bool ok, const std::string& detail = "") {
        print_check(problem.name + "/" + stage, ok && finder.logger.errors.empty(), detail + errors());
    };
    const std::string kind = problem.kind->name;
    const Descs descs(problem);
    const bool in_place = problem.field("state_in_place") > 0;

    const Plugin plugin = create(problem);
    check("create", plugin != nullptr);
    auto* const core =
        static_cast<nvinfer1::IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
    Build& build = build_of(*plugin);
    check("capabilities", core->getPluginName() == kind && core->getPluginVersion() == std::string("1") &&
                              core->getPluginNamespace() == std::string("videossm") &&
                              build.getNbOutputs() == OUTPUTS && build.getInterfaceInfo().major == 2);

    DataType types[OUTPUTS] = {};
    bool ok = output_types(build, descs, types) == 0;
    check("types", ok && types[0] == descs.out[0].type && types[1] == DataType::kFLOAT);

    FakeExprBuilder builder;
    DimsExprs shapes[OUTPUTS] = {};
    ok = output_shapes(build, descs, shapes, builder) == 0;
    check("shapes", ok && sizes_of(shapes[0]) == sizes_of(descs.out[0].dims) &&
                        sizes_of(shapes[1]) == sizes_of(descs.out[1].dims));

    const std::string formats = wrong_formats(build, descs);
    check("formats", formats.empty(), formats);
    check("configure", configure(build, descs) == 0);
    const auto in = descs.dynamic_in();
    const auto out = descs.dynamic_out();
    const size_t workspace_bytes = build.getWorkspaceSize(in.data(), descs.inputs(), out.data(), OUTPUTS);
    check("workspace", true, std::to_string(workspace_bytes) + " bytes");
    check("alias", build.getAliasedInput(0) == -1 && build.getAliasedInput(1) == (in_place ? 5 : -1));

    const Plugin kept = created_again(kind, *plugin);
    check("serialise",
          kept && fields_of(*kept) == fields_of(*plugin) && fields_of(*kept) == build.getMetadataString() &&
              fields_of(*kept) == build.getTimingCacheID(),
          fields_of(*plugin));
    const Plugin copy(kept->clone());
    check("clone", copy && copy != kept && fields_of(*copy) == fields_of(*kept));
    const FakeContext context;
    const Plugin attached(runtime_of(*copy).attachToContext(const_cast<FakeContext*>(&context)));
    check("attach", attached && attached != copy && fields_of(*attached) == fields_of(*kept));
    Runtime& runtime = runtime_of(*attached);
    check("shape-change", runtime.setTactic(0) == 0 && change_shapes(runtime, descs) == 0);
    const std::string wrong = wrong_outputs(runtime, problem, descs, workspace_bytes, in_place);
    check("enqueue", wrong.empty(), wrong);
    const std::string again = wrong_outputs(runtime, problem, descs, workspace_bytes, true);
    check("enqueue-in-place", again.empty(),
          again);  // also where TensorRT was not told: a caller may bind one buffer
}

/* With sizes that are known at run time only: the outputs' sizes are the inputs' own expressions. */
void check_unknown_sizes(Problem problem) {
    for (Tensor& tensor : problem.inputs) {
        tensor.shape.size.fill(videossm::UNKNOWN_SIZE);
    }
    const Descs descs(problem);
    const Plugin plugin = create(problem);
    FakeExprBuilder builder;
    DimsExprs shapes[OUTPUTS] = {};
    const bool ok = output_shapes(build_of(*plugin), descs, shapes, builder) == 0;
    const std::string kind = problem.kind->name;
    print_check("unknown-sizes/" + kind + "/shapes",
                ok && sizes_of(shapes[1]) == (kind == "GatedDeltaScan" ? "?,?,?,?" : "?,?,?"), errors());

    auto in = descs.dynamic_in();
    auto out = descs.dynamic_out();
    for (auto* descs_of : {&in, &out}) {
        for (DynamicPluginTensorDesc& tensor : *descs_of) {
            std::fill_n(tensor.min.d, tensor.min.nbDims, 1);
            std::fill_n(tensor.max.d, tensor.max.nbDims, 16);
        }
    }
    Build& build = build_of(*plugin);
    const bool configured = build.configurePlugin(in.data(), descs.inputs(), out.data(), OUTPUTS) == 0;
    print_check("unknown-sizes/" + kind + "/configure", configured, errors());
    Runtime& runtime = runtime_of(*plugin);
    const bool refused = change_shapes(runtime, descs) != 0;
    const std::string text = errors();
    print_check("refuses/" + kind + "/unknown-sizes", refused && text.find("got no size") != text.npos, text);
}
/* A logger that cannot be had, or is not there, is no reason to fail otherwise than by a status. */
void check_without_logger() {
    finder.throws = true;
    const bool refused = create("GatedDeltaScan", {}, TensorRTPhase::kBUILD) == nullptr;
    finder.throws = false;
    setLoggerFinder(nullptr);
    const bool refused_again = create("SelectiveScan", {}, TensorRTPhase::kBUILD) == nullptr;
    const bool refused_null =
        creator_of("SelectiveScan").createPlugin("a name", nullptr, TensorRTPhase::kBUILD) == nullptr;
    setLoggerFinder(&finder);
    print_check("without-logger", refused && refused_again && refused_null && finder.logger.errors.empty(),
                errors());
}

void print_creators() {
    int32_t count = 0;
    nvinfer1::IPluginCreatorInterface* const* const creators = getCreators(count);
    for (int32_t i = 0; i < count; ++i) {
        auto& creator = *static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
        std::string fields;
        const PluginFieldCollection& names = *creator.getFieldNames();
        for (int32_t j = 0; j < names.nbFields; ++j) {
            const bool is_number = names.fields[j].type == PluginFieldType::kFLOAT32;
            fields +=
                (j ? ", " : "") + quoted(names.fields[j].name) + ": " + (is_number ? "\"FLOAT\"" : "\"INT\"");
        }
        std::printf("{\"creator\": %s, \"version\": %s, \"namespace\": %s, \"kind\": %s, \"fields\": {%s}}\n",
                    quoted(creator.getPluginName()).c_str(), quoted(creator.getPluginVersion()).c_str(),
                    quoted(creator.getPluginNamespace()).c_str(),
                    quoted(creator.getInterfaceInfo().kind).c_str(), fields.c_str());
    }
}

}  // namespace

int main() {
    setLoggerFinder(&finder);
    print_creators();
    const std::vector<Problem> all = problems();
    for (const Problem& problem : all) {
        check_problem(problem);
        const bool is_whole = problem.name.find("normalized/fp32") != std::string::npos ||
                              problem.name.find("all/fp32") != std::string::npos;
        if (is_whole) {  // one of each scan, with all its inputs
            check_unknown_sizes(problem);
            check_refusals(problem);
        }
    }
    check_without_logger();
    return 0;
}
