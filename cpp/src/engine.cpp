#include "engine.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <stdexcept>

#include <openvino/openvino.hpp>

#include "engine_norms.hpp"
#include "errors.hpp"
#include "files.hpp"
#include "processor.hpp"
#include "sha256.hpp"

namespace fs = std::filesystem;

namespace segship {

namespace {

constexpr const char* DEVICE = "CPU";

ov::Core& core() {
    static ov::Core made;
    return made;
}

// The line of a library's message that says most: engines print a trace of calls first and the cause last.
std::string last_line(const std::exception& error) {
    std::istringstream lines(error.what());
    std::string found = "unknown failure";
    for (std::string line; std::getline(lines, line);) {
        const std::size_t first = line.find_first_not_of(" \t\r");
        if (first != std::string::npos) found = line.substr(first);
    }
    return found.size() <= 200 ? found : found.substr(0, 199) + "…";
}

std::string show_shape(const std::vector<std::string>& sides) {
    std::string text;
    for (const std::string& side : sides) text += (text.empty() ? "" : ", ") + side;
    return "(" + text + ")";
}

std::string show_shape(const Shape& shape) {
    std::vector<std::string> sides;
    for (const std::size_t side : shape) sides.push_back(std::to_string(side));
    return show_shape(sides);
}

std::string show_shape(const ov::PartialShape& shape) {
    std::vector<std::string> sides;
    for (const ov::Dimension& side : shape) {
        sides.push_back(side.is_dynamic() ? "any" : std::to_string(side.get_length()));
    }
    return show_shape(sides);
}

// As Python writes the tuple: it names the cache folder, which both languages share.
std::string as_tuple(const Shape& shape) {
    if (shape.empty()) return "None";
    std::string text;
    for (const std::size_t side : shape) text += (text.empty() ? "" : ", ") + std::to_string(side);
    return "(" + text + (shape.size() == 1 ? ",)" : ")");
}

bool fits(const Shape& shape, const ov::PartialShape& expected) {
    if (expected.rank().is_dynamic()) return true;
    if (expected.size() != shape.size()) return false;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        if (shape[i] == 0) return false;
        if (expected[i].is_static() && static_cast<std::size_t>(expected[i].get_length()) != shape[i]) return false;
    }
    return true;
}

ov::element::Type hint_for(const std::string& precision) {
    if (precision != "bf16" && precision != "fp16") return ov::element::f32;
    const std::vector<std::string> native = native_precisions();
    // On a processor without it, float32: the more accurate of the two, and faster than emulation.
    if (std::find(native.begin(), native.end(), precision) == native.end()) return ov::element::f32;
    return precision == "bf16" ? ov::element::bf16 : ov::element::f16;
}

// Where this very graph's compiled form may lie; empty without a usable folder. OpenVINO recognises a graph by path, size
// and time of change only, so the folder is named by content, and by what else the compiled form depends on.
std::string cache_folder_of(const std::string& graph, const SessionOptions& options) {
    if (options.cache_dir.empty()) return "";
    const std::string content = options.graph_sha256.empty() ? sha256_file(graph) : options.graph_sha256;
    const std::string depends =
        content + "|" + engine_version() + "|" + processor().label() + "|" + as_tuple(options.static_shape);
    const fs::path folder = fs::path(options.cache_dir) / sha256_bytes(depends).substr(0, 32);
    std::error_code failed;
    fs::create_directories(folder, failed);
    return failed ? "" : folder.string();
}

EngineError unreadable(const std::string& graph, const std::exception& error) {
    return EngineError(graph + ": openvino cannot read it as an ONNX graph (" + last_line(error) +
                       "); the file is damaged or is no ONNX: check the package with `segship verify`, or export it again");
}

// A whole number in protobuf's writing; false at the end of the file, or where there is none.
bool read_varint(std::istream& file, std::uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        const int byte = file.get();
        if (byte < 0) return false;
        value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
        if (byte < 0x80) return true;
    }
    return false;
}

// An ONNX file is a row of fields that ends with the file. OpenVINO asks every reader it has about another one, and some of
// them talk about it.
bool is_row_of_fields(const std::string& graph, std::uint64_t size) {
    std::ifstream file(graph, std::ios::binary);
    for (std::uint64_t at = 0; at < size; at = static_cast<std::uint64_t>(file.tellg())) {
        std::uint64_t tag = 0, value = 0;
        if (!read_varint(file, tag) || tag >> 3 == 0 || tag >> 3 > 100 || !read_varint(file, value)) return false;
        if ((tag & 7) == 0) continue;
        const auto here = static_cast<std::uint64_t>(file.tellg());
        if ((tag & 7) != 2 || value > size - here) return false;
        file.seekg(static_cast<std::streamoff>(value), std::ios::cur);
    }
    return true;
}

std::shared_ptr<ov::Model> read_model(const std::string& graph) {
    try {
        return core().read_model(graph);
    } catch (const std::exception& error) {
        throw unreadable(graph, error);
    }
}

void check_graph(const std::string& graph) {
    std::error_code failed;
    const auto size = fs::file_size(graph, failed);
    if (failed) {
        throw EngineError(graph + ": no graph there (" + failed.message() + "); check the package with `segship verify`");
    }
    if (size == 0) {
        throw EngineError(graph + ": the graph is empty; copy the package again, or check it with `segship verify`");
    }
    if (!is_row_of_fields(graph, size)) throw unreadable(graph, std::runtime_error("it is cut short or another file"));
}

ov::PartialShape only_input(const std::string& graph, const std::vector<ov::Output<const ov::Node>>& inputs) {
    if (inputs.size() != 1) {
        throw EngineError(graph + ": segship runs graphs of one input, this one has " + std::to_string(inputs.size()));
    }
    return inputs[0].get_partial_shape();
}

// The values of an output as float32, whatever the graph gives.
Array<float> as_array(const ov::Tensor& tensor) {
    const ov::Shape& sides = tensor.get_shape();
    Array<float> array;
    array.shape.assign(sides.begin(), sides.end());
    const std::size_t count = tensor.get_size();
    const auto convert = [&](auto* values) { array.data.assign(values, values + count); };
    const ov::element::Type type = tensor.get_element_type();
    if (type == ov::element::f32) convert(tensor.data<const float>());
    else if (type == ov::element::f16) convert(tensor.data<const ov::float16>());
    else if (type == ov::element::bf16) convert(tensor.data<const ov::bfloat16>());
    else if (type == ov::element::f64) convert(tensor.data<const double>());
    else if (type == ov::element::i64) convert(tensor.data<const std::int64_t>());
    else if (type == ov::element::i32) convert(tensor.data<const std::int32_t>());
    else if (type == ov::element::u8) convert(tensor.data<const std::uint8_t>());
    else throw EngineError("openvino: the graph gives values of type " + type.get_type_name() + "; export it again");
    return array;
}

}  // namespace

std::string engine_version() {
    const std::string build = ov::get_openvino_version().buildNumber;
    return build.substr(0, build.find('-'));
}

std::vector<std::string> native_precisions() {
    static const std::map<std::string, std::string> names = {
        {"FP32", "fp32"}, {"FP16", "fp16"}, {"BF16", "bf16"}, {"INT8", "int8"}};
    std::vector<std::string> found;
    for (const std::string& told : core().get_property(DEVICE, ov::device::capabilities)) {
        const auto known = names.find(told);
        // It also tells what it emulates: bf16 on AVX-512 without bf16, int8 through 16-bit integers.
        if (known != names.end() && processor().may_compute(known->second)) found.push_back(known->second);
    }
    return found;
}

struct Session::Inner {
    std::string graph;
    SessionOptions options;
    ov::element::Type hint;
    ov::CompiledModel compiled;
    ov::PartialShape expected;
    std::mutex guard;
    std::condition_variable free;
    // Last in, first out: the request used last has its memory in the processor's cache.
    std::vector<ov::InferRequest> requests;

    ov::AnyMap properties(const std::string& cache) const {
        using namespace ov::hint;
        ov::AnyMap map = {
            inference_precision(hint),
            performance_mode(options.streams == 1 ? PerformanceMode::LATENCY : PerformanceMode::THROUGHPUT),
            execution_mode(options.precision == "fp32" ? ExecutionMode::ACCURACY : ExecutionMode::PERFORMANCE),
            ov::enable_profiling(false),
            ov::num_streams(ov::streams::Num(options.streams)),
        };
        if (options.threads > 0) map.insert(ov::inference_num_threads(options.threads));
        if (!cache.empty()) map.insert(ov::cache_dir(cache));
        return map;
    }

    void compile() {
        const std::string cache = cache_folder_of(graph, options);
        const ov::AnyMap settings = properties(cache);
        const bool steady = options.precision == "fp32" && has_instance_norm(graph);
        if (!cache.empty() && options.static_shape.empty() && !steady) {
            // Given the path, OpenVINO takes the compiled model without reading the graph at all.
            compile_path(settings);
        } else {
            compile_model(settings, steady);
        }
        expected = only_input(graph, compiled.inputs());
        if (!options.static_shape.empty()) return;
        if (expected.rank().is_dynamic()) {
            throw EngineError(graph + ": openvino needs to know how many axes the input has; export it with them");
        }
    }

    void compile_path(const ov::AnyMap& settings) {
        try {
            compiled = core().compile_model(graph, DEVICE, settings);
        } catch (const std::exception& error) {
            read_model(graph);  // is it the graph, or the device that refuses it? reading tells
            throw refused(error);
        }
    }

    void compile_model(const ov::AnyMap& settings, bool steady) {
        const std::shared_ptr<ov::Model> model = read_model(graph);
        if (!options.static_shape.empty()) reshape(*model);
        try {
            if (steady) split_means(model);
            compiled = core().compile_model(model, DEVICE, settings);
        } catch (const std::exception& error) {
            throw refused(error);
        }
    }

    void reshape(ov::Model& model) const {
        std::vector<ov::Output<const ov::Node>> inputs;
        for (const auto& input : model.inputs()) inputs.emplace_back(input);
        const ov::PartialShape declared = only_input(graph, inputs);
        if (!fits(options.static_shape, declared)) {
            throw EngineError(graph + ": cannot be compiled for the shape " + show_shape(options.static_shape) +
                              ", its input is " + show_shape(declared));
        }
        try {
            model.reshape(ov::PartialShape(ov::Shape(options.static_shape.begin(), options.static_shape.end())));
        } catch (const std::exception& error) {
            throw EngineError(graph + ": cannot be compiled for the shape " + show_shape(options.static_shape) + " (" +
                              last_line(error) + "); choose a size that fits the network");
        }
    }

    EngineError refused(const std::exception& error) const {
        return EngineError(graph + ": openvino cannot compile it for CPU (" + last_line(error) +
                           "); try a static shape where the device needs one");
    }

    void check_working_precision() const {
        const ov::element::Type working = compiled.get_property(ov::hint::inference_precision);
        if (working == hint) return;
        throw PrecisionMissing("device CPU computes in " + working.to_string() + " where " + hint.to_string() +
                               " was asked for; choose another --precision");
    }

    ov::InferRequest take() {
        std::unique_lock<std::mutex> lock(guard);
        free.wait(lock, [&] { return !requests.empty(); });
        ov::InferRequest request = requests.back();
        requests.pop_back();
        return request;
    }

    void give_back(const ov::InferRequest& request) {
        {
            const std::lock_guard<std::mutex> lock(guard);
            requests.push_back(request);
        }
        free.notify_one();
    }

    std::vector<Array<float>> infer(ov::InferRequest& request, const Array<float>& x) const {
        try {
            // The input is only read during the call, so it is shared; outputs live in the request, so they are copied.
            const ov::Tensor input(ov::element::f32, ov::Shape(x.shape.begin(), x.shape.end()),
                                   const_cast<float*>(x.data.data()));
            request.set_input_tensor(input);
            request.infer();
            std::vector<Array<float>> outputs;
            for (std::size_t i = 0; i < compiled.outputs().size(); ++i) {
                outputs.push_back(as_array(request.get_output_tensor(i)));
            }
            return outputs;
        } catch (const SegshipError&) {
            throw;
        } catch (const std::exception& error) {
            throw EngineError("openvino: failed on an input of shape " + show_shape(x.shape) + " (" + last_line(error) +
                              "); if other sizes work, this one does not fit the network: resize or pad it");
        }
    }
};

Session::Session(const std::string& graph, const SessionOptions& options) : inner_(std::make_unique<Inner>()) {
    check_graph(graph);
    inner_->graph = graph;
    inner_->options = options;
    inner_->hint = hint_for(options.precision);
    inner_->compile();
    inner_->check_working_precision();
    for (int i = 0; i < options.streams; ++i) inner_->requests.push_back(inner_->compiled.create_infer_request());
}

Session::~Session() = default;

std::vector<Array<float>> Session::run(const Array<float>& x) const {
    if (!fits(x.shape, inner_->expected)) {
        throw EngineError("openvino: expected input of shape " + show_shape(inner_->expected) + ", got " +
                          show_shape(x.shape) + "; resize or pad the input, or export for this size");
    }
    ov::InferRequest request = inner_->take();
    try {
        std::vector<Array<float>> outputs = inner_->infer(request, x);
        inner_->give_back(request);
        return outputs;
    } catch (...) {
        inner_->give_back(request);
        throw;
    }
}

}  // namespace segship
