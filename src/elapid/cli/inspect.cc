#include "elapid/cli/command.h"
#include "elapid/cli/model_options.h"
#include "elapid/cli/output.h"
#include "elapid/core/isa.h"
#include "elapid/io/safetensors.h"

#include <map>

namespace elapid::cli {
namespace {

struct Options {
  ModelOptions model;
  bool devices = false, json = false;
};

void print_devices(const Options& o) {
  std::vector<std::string> levels;
  for (const Isa isa : available_isas()) levels.emplace_back(name_of(isa));
  const std::string active(name_of(active_isa()));
  const int threads = o.model.threads > 0 ? static_cast<int>(o.model.threads) : ThreadPool::usable_cores();
  std::string list, cuda;
  for (const std::string& level : levels) list += " " + level;
  const OrderedJson cpu = {{"device", "cpu"}, {"isa", levels}, {"active_isa", active}, {"threads", threads}};
  OrderedJson json{{"devices", OrderedJson::array({cpu})}};
  if constexpr (kWithCuda) {
    for (const CudaDevice& device : cuda_devices()) {
      const std::string name = concat("cuda:", device.index), capability = concat(device.major, ".", device.minor);
      const bool runs = runs_on(device.major, device.minor);
      json["devices"].push_back(OrderedJson{{"device", name},
                                            {"name", device.name},
                                            {"compute_capability", capability},
                                            {"bytes", device.bytes},
                                            {"usable", runs}});
      cuda += concat(name, "  ", device.name, ", compute capability ", capability, ", ", device.bytes >> 20, " MiB",
                     runs ? "" : "; not usable: this build has no code for it", "\n");
    }
    json["cuda_architectures"] = cuda_architectures();
    cuda += concat("cuda  built for ", cuda_architectures(), "\n");
  }
  if (o.json) return print_json(json);
  print(concat("cpu  isa", list, ", uses ", active, "; ", threads, " threads\n", cuda));
}

std::string join_lines(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : "\n                          ") + part;
  return text.empty() ? "none" : text;
}

void run(const Options& o) {
  if (o.devices) return print_devices(o);
  // Loading checks every tensor against the config; what is printed is what would run.
  const auto threads = o.model.start_threads();
  LoadOptions options = o.model.load_options();
  options.verify_packed = true;
  const auto model = load_model(o.model.folder(), *threads, options);
  const ModelConfig& config = model->config();
  const Model::Weights& weights = model->weights();
  const int64_t state_bytes = model->state_spec()->bytes_per_sequence(),
                token_bytes = model->state_spec()->bytes_per_token();
  OrderedJson dtypes = OrderedJson::object();
  std::string dtype_text;
  for (const auto& [dtype, elements] : weights.elements_by_dtype) {
    dtypes[std::string(dtype)] = elements;
    dtype_text += concat(dtype_text.empty() ? "" : ", ", dtype, " (", elements, ")");
  }
  const std::optional<Quantization>& quantization = config.quantization;
  if (o.json) {
    const OrderedJson quantized = quantization ? OrderedJson{{"method", name_of(quantization->method)},
                                                             {"bits", quantization->bits},
                                                             {"code", quantization->code}}
                                               : OrderedJson();
    return print_json(OrderedJson{{"family", config.family},
                                  {"layers", config.layers()},
                                  {"parameters", weights.parameters},
                                  {"bytes", weights.bytes},
                                  {"dtypes", dtypes},
                                  {"state_bytes_per_sequence", state_bytes},
                                  {"unknown_config_keys", config.unknown_keys},
                                  {"notes", config.notes},
                                  {"state_bytes_per_token", token_bytes},
                                  {"quantization", quantized}});
  }
  print(concat("family                    ", config.family, "\nlayers                    ", config.layers(),
               "\nparameters                ", weights.parameters, "\nbytes                     ", weights.bytes,
               "\ndtypes                    ", dtype_text, "\nstate bytes per sequence  ", state_bytes,
               "\nstate bytes per token     ", token_bytes, "\nunknown config keys       ",
               join_lines(config.unknown_keys), "\nnotes                     ", join_lines(config.notes), "\n"));
}

}  // namespace

Run prepare_inspect(Flags& flags) {
  const auto o = std::make_shared<Options>();
  o->model.add(flags);
  flags.flag("--devices", o->devices, "List devices and instruction sets instead");
  flags.flag("--json", o->json, "Print one JSON object");
  return [o] { run(*o); };
}

}  // namespace elapid::cli
