#include "harness_layer.h"

namespace videossm::harness {
namespace {

class Refusals {
public:
    explicit Refusals(const Problem& good) : good_(good), unattached_(create(good)) {
        context_.recorder = &recorder_;
        plugin_ = Plugin(runtime_of(*unattached_).attachToContext(&context_));
    }

    /* `call` fails, logs `message` and nothing else, and records the same. */
    void check(const std::string& name, const std::string& message, bool failed) {
        const std::string text = errors();
        const bool is_recorded = recorder_.errors == std::vector<std::string>{text};
        const bool has_code = recorder_.code == nvinfer1::ErrorCode::kINVALID_ARGUMENT;
        recorder_.errors.clear();
        print_check("refuses/" + name, failed && is_recorded && has_code && text.find(message) != text.npos,
                    "got '" + text + "', expected '" + message + "'");
    }

    void run() {
        for (const Mistake& mistake : mistakes(good_)) {
            Problem wrong = good_;
            mistake.make(wrong);
            run(mistake, Descs(wrong));
        }
        run_formats();
        run_outputs();
        run_enqueue();
        const FieldStore store(good_);
        for (const WrongField& wrong : wrong_fields(good_, store)) {
            const TensorRTPhase phase = wrong.of_engine ? TensorRTPhase::kRUNTIME : TensorRTPhase::kBUILD;
            const bool failed = create(good_.kind->name, wrong.fields, phase) == nullptr;
            const std::string text = errors();
            print_check("refuses/" + wrong.name, failed && text.find(wrong.message) != text.npos,
                        "got '" + text + "', expected '" + wrong.message + "'");
        }
    }

private:
    Build& build() { return build_of(*plugin_); }
    Runtime& runtime() { return runtime_of(*plugin_); }

    void run(const Mistake& mistake, const Descs& descs) {
        using What = Mistake::What;
        if (mistake.what != What::TYPE) {
            FakeExprBuilder builder;
            DimsExprs shapes[OUTPUTS] = {};
            check(mistake.name + "/shapes", mistake.message,
                  output_shapes(build(), descs, shapes, builder) != 0);
        }
        if (mistake.what == What::TYPE || mistake.what == What::COUNT) {
            DataType types[OUTPUTS] = {};
            check(mistake.name + "/types", mistake.message, output_types(build(), descs, types) != 0);
        }
        if (mistake.what == What::COUNT) {
            const auto in = descs.dynamic_in();
            check(mistake.name + "/formats", mistake.message,
                  !build().supportsFormatCombination(0, in.data(), descs.inputs(), OUTPUTS));
            check(mistake.name + "/workspace", mistake.message,
                  build().getWorkspaceSize(in.data(), descs.inputs(), nullptr, OUTPUTS) == 0);
        }
        check(mistake.name + "/configure", mistake.message, configure(build(), descs) != 0);
        check(mistake.name + "/shape-change", mistake.message, change_shapes(runtime(), descs) != 0);
    }

    void run_formats() {
        const std::string kind = good_.kind->name;
        for (size_t i = 0; i < good_.inputs.size() + OUTPUTS; ++i) {
            Descs descs(good_);
            const bool is_input = i < good_.inputs.size();
            const size_t output = i - good_.inputs.size();
            (is_input ? descs.in[i] : descs.out[output]).format = TensorFormat::kCHW32;
            const std::string name = is_input ? good_.kind->inputs[i].name : good_.kind->outputs[output].name;
            const std::string message = kind + ": " + name + ": got format 5, expected linear";
            check(kind + "/format/" + name + "/configure", message, configure(build(), descs) != 0);
            check(kind + "/format/" + name + "/shape-change", message, change_shapes(runtime(), descs) != 0);
        }
    }

    void run_outputs() {
        const std::string kind = good_.kind->name;
        for (size_t i = 0; i < OUTPUTS; ++i) {
            const std::string name = good_.kind->outputs[i].name;
            Descs typed(good_), sized(good_), ranked(good_);
            typed.out[i].type = DataType::kINT8;
            sized.out[i].dims.d[1] += 1;
            ranked.out[i].dims.nbDims -= 1;
            const std::string start = kind + ": " + name + ": got ";
            check(kind + "/type/" + name + "/configure", start + "type int8", configure(build(), typed) != 0);
            check(kind + "/type/" + name + "/shape-change", start + "type int8",
                  change_shapes(runtime(), typed) != 0);
            check(kind + "/size/" + name, start, change_shapes(runtime(), sized) != 0);
            check(kind + "/rank/" + name, start + "rank", change_shapes(runtime(), ranked) != 0);
        }
        const Descs descs(good_);
        check(kind + "/count/outputs", kind + ": outputs: got 1, expected 2",
              runtime().onShapeChange(descs.in.data(), descs.inputs(), descs.out.data(), 1) != 0);
        FakeExprBuilder builder;
        DimsExprs shapes[OUTPUTS] = {};
        const auto in = expressions_of(descs, builder);
        check(
            kind + "/count/shape-inputs", kind + ": shape inputs: got 1, expected none",
            build().getOutputShapes(in.data(), descs.inputs(), in.data(), 1, shapes, OUTPUTS, builder) != 0);
    }

    /* What enqueue alone can see, and the library behind it. */
    void run_enqueue() {
        const std::string kind = good_.kind->name;
        const Descs descs(good_);
        std::vector<const void*> inputs;
        for (const Tensor& tensor : good_.inputs) {
            inputs.push_back(tensor.bytes.data());
        }
        std::vector<float> memory(1 << 16);
        void* const outputs[] = {memory.data(), memory.data() + (1 << 14)};
        void* const workspace = memory.data() + (1 << 15);
        for (size_t i = 0; i < static_cast<size_t>(good_.kind->required_inputs); ++i) {
            auto missing = inputs;
            missing[i] = nullptr;
            const std::string name = good_.kind->inputs[i].name;
            check(kind + "/null/" + name, kind + ": " + name + ": got null",
                  runtime().enqueue(descs.in.data(), descs.out.data(), missing.data(), outputs, workspace,
                                    nullptr) != 0);
        }
        for (size_t i = 0; i < OUTPUTS; ++i) {
            void* missing[] = {outputs[0], outputs[1]};
            missing[i] = nullptr;
            const std::string name = good_.kind->outputs[i].name;
            check(kind + "/null/" + name, kind + ": " + name + ": got null",
                  runtime().enqueue(descs.in.data(), descs.out.data(), inputs.data(), missing, workspace,
                                    nullptr) != 0);
        }
        Descs typed(good_);
        typed.in[0].type = DataType::kINT8;
        check(kind + "/type/enqueue", ": got type int8",
              runtime().enqueue(typed.in.data(), descs.out.data(), inputs.data(), outputs, workspace,
                                nullptr) != 0);
        Descs ranked(good_);
        ranked.in[0].dims.nbDims = 2;
        check(kind + "/rank/enqueue", ": got rank 2",
              runtime().enqueue(ranked.in.data(), descs.out.data(), inputs.data(), outputs, workspace,
                                nullptr) != 0);
    }

    const Problem& good_;
    FakeRecorder recorder_;
    FakeContext context_;
    Plugin unattached_, plugin_;
};

}  // namespace

void check_refusals(const Problem& good) { Refusals(good).run(); }

}  // namespace videossm::harness
