#include "elapid/cli/command.h"
#include "elapid/cli/model_options.h"
#include "elapid/cli/output.h"
#include "elapid/core/widen.h"
#include "elapid/infer/engine.h"
#include "elapid/io/safetensors.h"
#include "elapid/ops/cross_entropy/cross_entropy.h"
#include "elapid/ops/moe/aux_loss.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <optional>

namespace elapid::cli {
namespace {

struct Options {
  ModelOptions model;
  std::optional<std::string> input, output;
  bool hidden_states = false, states = false, router_logits = false, attentions = false;
  int64_t logits_to_keep = 0;
  RunOptions run;
};

// A matrix of integers [rows, columns].
struct Integers {
  int64_t rows = 0, columns = 0;
  std::vector<int64_t> values;
  [[nodiscard]] int64_t at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * columns + c)]; }
};

template <class T>
void copy_integers(const Tensor& tensor, std::vector<int64_t>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    T value;  // the file may be unaligned
    std::memcpy(&value, static_cast<const char*>(tensor.data) + i * sizeof(T), sizeof(T));
    values[i] = value;
  }
}

Integers read_integers(const Safetensors& file, const std::string& name, bool any_width) {
  const Tensor& tensor = file.at(name);
  require(tensor.shape.rank == 2, "forward: ", name, " must have 2 dimensions, got ", tensor.shape.rank);
  Integers result{tensor.shape[0], tensor.shape[1], std::vector<int64_t>(static_cast<size_t>(tensor.size()))};
  if (tensor.dtype == DType::i64) {
    copy_integers<int64_t>(tensor, result.values);
  } else if (any_width && tensor.dtype == DType::i32) {
    copy_integers<int32_t>(tensor, result.values);
  } else if (any_width && (tensor.dtype == DType::u8 || tensor.dtype == DType::boolean)) {
    copy_integers<uint8_t>(tensor, result.values);
  } else {
    fail(concat("forward: ", name, " must be ", any_width ? "i64, i32, u8 or boolean" : "i64", ", got ",
                name_of(tensor.dtype)));
  }
  return result;
}

TokenId token_of(int64_t id, const std::string& name) {
  require(id >= 0 && id <= std::numeric_limits<TokenId>::max(), "forward: ", name, " must hold token ids, got ", id);
  return static_cast<TokenId>(id);
}

// inputs_embeds [batch, length, d_model]; bf16 and f16 are widened.
struct Embeddings {
  int64_t rows = 0, columns = 0, d_model = 0;
  std::vector<float> values;
  [[nodiscard]] std::span<const float> at(int64_t r, int64_t c) const {
    return std::span(values).subspan(static_cast<size_t>((r * columns + c) * d_model), static_cast<size_t>(d_model));
  }
};

Embeddings read_embeddings(const Safetensors& file) {
  const Tensor& tensor = file.at("inputs_embeds");
  require(tensor.shape.rank == 3, "forward: inputs_embeds must have 3 dimensions, got ", tensor.shape.rank);
  const bool floats = tensor.dtype == DType::f32 || tensor.dtype == DType::bf16 || tensor.dtype == DType::f16;
  require(floats, "forward: inputs_embeds must be f32, bf16 or f16, got ", name_of(tensor.dtype));
  Embeddings result{tensor.shape[0], tensor.shape[1], tensor.shape[2],
                    std::vector<float>(static_cast<size_t>(tensor.size()))};
  widen(tensor.data, tensor.dtype, tensor.size(), result.values.data());
  return result;
}

// An array of a state that the rows go on from.
struct GivenState {
  Shape shape;
  std::vector<float> values;
};

// One row of the batch without its padding: ids or embeddings.
struct Row {
  std::vector<TokenId> tokens;
  std::vector<float> embeddings;   // [length, d_model]
  std::vector<int64_t> positions;  // column of each token
  std::vector<int64_t> labels;     // that the logits after each token are scored on, or kIgnoreLabel
};

struct Inputs {
  int64_t batch = 0, length = 0, steps = 0, d_model = 0;  // d_model: of the embeddings, 0 where there are ids
  std::vector<Row> rows;
  bool has_labels = false;
  std::vector<std::vector<TokenId>> step_ids;  // of each row
  std::map<std::string, GivenState> states;    // by name; none: rows begin
  std::vector<int64_t> state_lengths;          // of each row, or empty
};

void read_states(const Safetensors& file, Inputs& inputs) {
  for (const auto& [name, entry] : file.entries()) {
    if (!name.starts_with("state.")) continue;
    require(entry.tensor.dtype == DType::f32, "forward: ", name, " must be f32, got ", name_of(entry.tensor.dtype));
    GivenState& state = inputs.states[name];
    state.shape = entry.tensor.shape;
    state.values.resize(static_cast<size_t>(entry.tensor.size()));
    widen(entry.tensor.data, entry.tensor.dtype, entry.tensor.size(), state.values.data());
  }
  if (!file.contains("state_lengths")) return;
  require(!inputs.states.empty(), "forward: state_lengths must come with state.* arrays, got none");
  const Tensor& lengths = file.at("state_lengths");
  require(lengths.dtype == DType::i64 && lengths.shape == Shape(inputs.batch), "forward: state_lengths must be i64 [",
          inputs.batch, "], got ", name_of(lengths.dtype), " of ", lengths.size());
  inputs.state_lengths.resize(static_cast<size_t>(inputs.batch));
  copy_integers<int64_t>(lengths, inputs.state_lengths);
}

Inputs read_inputs(const std::string& path) {
  const Safetensors file = Safetensors::open(path);
  for (const auto& [name, entry] : file.entries()) {
    require(name == "input_ids" || name == "inputs_embeds" || name == "attention_mask" || name == "labels" ||
                name == "step_ids" || name == "state_lengths" || name.starts_with("state."),
            "forward: input tensors must be input_ids or inputs_embeds, attention_mask, labels, step_ids, state.* or "
            "state_lengths, got ",
            name);
  }
  Inputs inputs;
  Integers ids;
  Embeddings embeddings;
  const bool embedded = file.contains("inputs_embeds");
  require(embedded != file.contains("input_ids"), "forward: there must be input_ids or inputs_embeds, got ",
          embedded ? "both" : "neither");
  if (embedded) {
    embeddings = read_embeddings(file);
    inputs.batch = embeddings.rows;
    inputs.length = embeddings.columns;
    inputs.d_model = embeddings.d_model;
  } else {
    ids = read_integers(file, "input_ids", false);
    inputs.batch = ids.rows;
    inputs.length = ids.columns;
  }
  const std::string given = embedded ? "inputs_embeds" : "input_ids";
  require(inputs.batch > 0 && inputs.length > 0 && (!embedded || inputs.d_model > 0), "forward: ", given,
          " must not be empty, got [", inputs.batch, ", ", inputs.length, "]");
  const auto like_given = [&](const std::string& name, bool any_width) -> std::optional<Integers> {
    if (!file.contains(name)) return {};
    Integers values = read_integers(file, name, any_width);
    require(values.rows == inputs.batch && values.columns == inputs.length, "forward: ", name, " must be [",
            inputs.batch, ", ", inputs.length, "] as ", given, ", got [", values.rows, ", ", values.columns, "]");
    return values;
  };
  const std::optional<Integers> mask = like_given("attention_mask", true), labels = like_given("labels", false);
  if (mask) {
    for (const int64_t m : mask->values) {
      require(m == 0 || m == 1, "forward: attention_mask must hold 0 and 1, got ", m);
    }
  }
  const auto masked = [&](int64_t r, int64_t t) { return mask && mask->at(r, t) == 0; };

  inputs.has_labels = labels.has_value();
  for (int64_t r = 0; r < inputs.batch; ++r) {
    Row& row = inputs.rows.emplace_back();
    for (int64_t t = 0; t < inputs.length; ++t) {
      if (masked(r, t)) continue;
      if (embedded) {
        const auto vector = embeddings.at(r, t);
        row.embeddings.insert(row.embeddings.end(), vector.begin(), vector.end());
      } else {
        row.tokens.push_back(token_of(ids.at(r, t), "input_ids"));
      }
      // The shift is along the row that runs: a token is scored on the next one that is not masked.
      if (labels && !row.labels.empty()) row.labels.back() = labels->at(r, t);
      row.positions.push_back(t);
      row.labels.push_back(kIgnoreLabel);
    }
  }
  if (file.contains("step_ids")) {
    const Integers steps = read_integers(file, "step_ids", false);
    require(steps.rows == inputs.batch, "forward: step_ids must have ", inputs.batch, " rows as ", given, ", got ",
            steps.rows);
    inputs.steps = steps.columns;
    for (int64_t r = 0; r < steps.rows; ++r) {
      auto& row = inputs.step_ids.emplace_back();
      for (int64_t s = 0; s < steps.columns; ++s) row.push_back(token_of(steps.at(r, s), "step_ids"));
    }
  }
  read_states(file, inputs);
  return inputs;
}

std::string join_dims(const Shape& shape) {
  std::string text;
  for (int i = 0; i < shape.rank; ++i) text += concat(i == 0 ? "" : ", ", shape[i]);
  return text;
}

// Named float32 arrays to be written, zero where nothing is put.
class Outputs {
 public:
  Tensor add(const std::string& name, Shape shape) {
    int64_t bytes = size_of(DType::f32);
    for (int i = 0; i < shape.rank; ++i) {
      require(!__builtin_mul_overflow(bytes, shape[i], &bytes), "forward: ", name,
              " must fit into memory, got dimension ", shape[i]);
    }
    const Buffer& memory = memory_.emplace_back(bytes);
    tensors_.push_back({name, Tensor(memory.data(), DType::f32, shape)});
    return tensors_.back().tensor;
  }
  void write(const std::string& path) const { write_safetensors(path, tensors_); }

 private:
  std::deque<Buffer> memory_;
  std::vector<NamedTensor> tensors_;
};

// Mean over the labels that count, summed in double.
struct Loss {
  double sum = 0;
  int64_t count = 0;

  void add(Engine& engine, const Tensor& logits, int64_t* labels) {
    Context ctx = engine.host_context();
    const Tensor nll = cross_entropy(ctx, logits, Tensor(labels, DType::i64, {logits.rows()}));
    for (int64_t i = 0; i < logits.rows(); ++i) {
      if (labels[i] == kIgnoreLabel) continue;
      sum += nll.ptr<float>()[i];
      ++count;
    }
  }
};

class Forward {
 public:
  Forward(Engine& engine, Inputs& inputs, const Options& options)
      : engine_(engine), inputs_(inputs), options_(options), config_(engine.model().config()) {
    for (int64_t r = 0; r < inputs.batch; ++r) slots_.push_back(engine.states().acquire());
    if (!inputs.states.empty()) begin_from_states();
  }

  Outputs operator()() {
    prompts();
    if (options_.states) states();
    if (inputs_.steps > 0) steps();
    return std::move(outputs_);
  }

 private:
  // An array of the last `length` positions of every row.
  Tensor add_rows(const std::string& name, int64_t length, int64_t columns) {
    return outputs_.add(name, {inputs_.batch, length, columns});
  }

  void prompts() {
    const int64_t length = inputs_.length;
    const int64_t kept = options_.logits_to_keep > 0 ? std::min(options_.logits_to_keep, length) : length;
    const Tensor logits = add_rows("logits", kept, config_.vocab);
    const Tensor last = add_rows("last_hidden_state", kept, config_.d_model);
    std::vector<Tensor> hidden;
    if (options_.hidden_states) {
      for (int64_t i = 0; i <= config_.layers(); ++i) {
        hidden.push_back(add_rows(concat("hidden_states.", i), length, config_.d_model));
      }
    }
    // Rows that are all padding have nothing to run.
    std::vector<Input> inputs;
    std::vector<int64_t> rows;
    int64_t total = 0;
    for (int64_t r = 0; r < inputs_.batch; ++r) {
      Row& row = inputs_.rows[static_cast<size_t>(r)];
      const auto count = static_cast<int64_t>(row.positions.size());
      if (count == 0) continue;
      Input& input = inputs.emplace_back();
      input.slot = slots_[static_cast<size_t>(r)].index();
      if (inputs_.d_model > 0) {
        input.embeddings = Tensor(row.embeddings.data(), DType::f32, {count, inputs_.d_model});
      } else {
        input.tokens = row.tokens;
      }
      // The loss wants every row.
      if (!inputs_.has_labels) {
        input.rows_from = std::ranges::lower_bound(row.positions, length - kept) - row.positions.begin();
      }
      rows.push_back(r);
      total += count - input.rows_from;
    }
    // Into an array of the last positions of every row.
    const auto put = [&](const Tensor& target, const Piece& piece, const Tensor& source) {
      const int64_t r = rows[static_cast<size_t>(piece.input)], columns = source.cols();
      const int64_t positions = target.size() / columns / inputs_.batch;
      const Row& row = inputs_.rows[static_cast<size_t>(r)];
      for (int64_t i = 0; i < piece.count; ++i) {
        const int64_t t = row.positions[static_cast<size_t>(piece.first + i)] - (length - positions);
        if (t >= 0) std::copy_n(source.row<float>(i), columns, target.row<float>(r * positions + t));
      }
    };
    Engine::Visitor visitor;
    Progress progress("forward", total);
    Loss loss;
    int64_t done = 0;
    visitor.rows = [&](const Piece& piece, const Tensor& h, const Tensor& l) {
      put(last, piece, h);
      put(logits, piece, l);
      if (inputs_.has_labels) {
        Row& row = inputs_.rows[static_cast<size_t>(rows[static_cast<size_t>(piece.input)])];
        loss.add(engine_, l, row.labels.data() + piece.first);
      }
      progress.update(done += piece.count);
    };
    if (options_.hidden_states) {
      visitor.residual = [&](const Piece& piece, int64_t layer, const Tensor& residual) {
        put(hidden.at(static_cast<size_t>(layer)), piece, residual);
      };
    }
    // By layer; there whether or not a row has anything to run.
    std::map<int64_t, Tensor> routers, attentions;
    std::optional<AuxLoss> aux_loss;  // spans all layers, which agree on experts and on how many a token takes
    for (const BlockConfig& block : config_.blocks) {
      for (const BodyUse& use : block.bodies) {
        const auto* moe = std::get_if<MoeConfig>(&use.config);
        if (options_.router_logits && moe != nullptr && !routers[block.layer]) {
          routers[block.layer] =
              outputs_.add(concat("router_logits.", block.layer), {inputs_.batch * length, moe->experts});
          if (!aux_loss) aux_loss.emplace(moe->experts, moe->top_k);
        }
        const auto* attention = std::get_if<AttentionConfig>(&use.config);
        if (options_.attentions && attention != nullptr && !attentions[block.layer]) {
          attentions[block.layer] =
              outputs_.add(concat("attentions.", block.layer), {inputs_.batch, attention->heads, length, length});
        }
      }
    }
    if (options_.router_logits) {
      visitor.router_logits = [&](const Piece& piece, int64_t layer, const Tensor& l) {
        put(routers.at(layer), piece, l);
        aux_loss->add(l);
      };
    }
    if (options_.attentions) {
      visitor.attentions = [&](const Piece& piece, int64_t layer, const Tensor& weights) {
        const Tensor& target = attentions.at(layer);
        const int64_t heads = weights.shape[0];
        const int64_t r = rows[static_cast<size_t>(piece.input)];
        const std::vector<int64_t>& positions = inputs_.rows[static_cast<size_t>(r)].positions;
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t i = 0; i < piece.count; ++i) {
            const float* from = weights.row<float>(h * piece.count + i);
            float* to = target.row<float>((r * heads + h) * length + positions[static_cast<size_t>(piece.first + i)]);
            for (int64_t j = 0; j <= piece.first + i; ++j) to[positions[static_cast<size_t>(j)]] = from[j];
          }
        }
      };
    }
    engine_.all_logits(inputs, visitor);
    if (aux_loss) {
      float* value = outputs_.add("aux_loss", {}).ptr<float>();
      if (aux_loss->rows() > 0) *value = static_cast<float>(aux_loss->value());
    }
    if (!inputs_.has_labels) return;
    require(loss.count > 0, "forward: labels must hold one that counts after the first unmasked token, got none");
    *outputs_.add("loss", {}).ptr<float>() = static_cast<float>(loss.sum / static_cast<double>(loss.count));
  }

  // How files hold an entry of all rows: [batch, outer, times, inner], where the engine has [times, outer, inner] of
  // each row. A window is [time, channels] inside and [channels, time] outside; tokens' entries are [time, heads,
  // width] and [heads, time, width].
  struct Layout {
    int64_t outer = 1, times = 1, inner = 1;
    Shape shape;
  };
  [[nodiscard]] Layout layout_of(const StateEntry& entry, int64_t tokens) const {
    if (entry.per_token()) {
      const int64_t heads = entry.shape[0], width = entry.shape[1];
      return {heads, tokens, width, {inputs_.batch, heads, tokens, width}};
    }
    if (entry.kind == "conv") {
      return {entry.shape[1], entry.shape[0], 1, {inputs_.batch, entry.shape[1], entry.shape[0]}};
    }
    Layout whole{.inner = entry.shape.size(), .shape = {inputs_.batch}};
    whole.shape.rank = entry.shape.rank + 1;
    std::copy_n(entry.shape.dims, entry.shape.rank, whole.shape.dims + 1);
    return whole;
  }

  // Every row goes on from the states in the file, left-aligned in time.
  void begin_from_states() {
    constexpr int64_t kMostTokens = int64_t{1} << 40;
    const auto spec = engine_.model().state_spec();
    std::optional<int64_t> tokens;  // that entries per token have room for
    for (const StateEntry& entry : spec->entries) {
      const std::string name = concat("state.", entry.layer, ".", entry.kind);
      const auto found = inputs_.states.find(name);
      require(found != inputs_.states.end(), "forward: states must have all of this model's arrays, got no ", name);
      const Shape& shape = found->second.shape;
      if (entry.per_token() && !tokens && shape.rank == 4) tokens = shape[2];
      const Shape want = layout_of(entry, tokens.value_or(0)).shape;
      require(shape == want, "forward: ", name, " must be [", join_dims(want), "], got [", join_dims(shape), "]");
    }
    require(inputs_.states.size() == spec->entries.size(), "forward: states must have this model's ",
            spec->entries.size(), " arrays, got ", inputs_.states.size());
    if (inputs_.state_lengths.empty()) inputs_.state_lengths.assign(slots_.size(), tokens.value_or(0));
    for (size_t r = 0; r < slots_.size(); ++r) {
      const int64_t length = inputs_.state_lengths[r], slot = slots_[r].index();
      require(length >= 0 && length <= tokens.value_or(kMostTokens), "forward: state_lengths must be 0 to ",
              tokens.value_or(kMostTokens), ", got ", length);
      engine_.states().extend(slot, length);
      for (size_t e = 0; e < spec->entries.size(); ++e) {
        begin_entry(static_cast<int64_t>(e), static_cast<int64_t>(r), tokens.value_or(0));
      }
      engine_.states().advance(slot, length);
      begun_ = std::max(begun_, tokens ? length : 0);
    }
  }

  void begin_entry(int64_t index, int64_t r, int64_t tokens) {
    const StateEntry& entry = engine_.model().state_spec()->entries[static_cast<size_t>(index)];
    const Layout layout = layout_of(entry, tokens);
    const int64_t slot = slots_[static_cast<size_t>(r)].index(), width = layout.outer * layout.inner;
    const float* from =
        inputs_.states.at(concat("state.", entry.layer, ".", entry.kind)).values.data() + r * layout.times * width;
    const int64_t times = entry.per_token() ? inputs_.state_lengths[static_cast<size_t>(r)] : layout.times;
    std::vector<float> values(static_cast<size_t>(entry.shape.size()));  // of the entry, or of one token
    for (int64_t t = 0; t < times; ++t) {
      float* to = values.data() + (entry.per_token() ? 0 : t * width);
      for (int64_t o = 0; o < layout.outer; ++o) {
        std::copy_n(from + (o * layout.times + t) * layout.inner, layout.inner, to + o * layout.inner);
      }
      if (entry.per_token()) engine_.states().write_token(slot, index, t, values);
    }
    if (!entry.per_token()) engine_.states().write(slot, index, values);
  }

  void states() {
    std::vector<State> saved;
    for (const Slot& slot : slots_) saved.push_back(engine_.states().save(slot, {}));
    for (int64_t e = 0; e < saved.front().entry_count(); ++e) {
      const StateEntry& entry = saved.front().declared(e);
      // Tokens are left-aligned in the time of the longest row there could be.
      const auto [outer, times, inner, shape] = layout_of(entry, begun_ + inputs_.length);
      float* target = outputs_.add(concat("state.", entry.layer, ".", entry.kind), shape).ptr<float>();
      for (const State& state : saved) {
        const auto* source = state.entry(e).ptr<float>();
        const int64_t length = entry.per_token() ? state.length() : times;
        for (int64_t t = 0; t < length; ++t) {
          for (int64_t o = 0; o < outer; ++o, source += inner) {
            std::copy_n(source, inner, target + (o * times + t) * inner);
          }
        }
        target += outer * times * inner;
      }
    }
  }

  void steps() {
    const Tensor all = outputs_.add("step_logits", {inputs_.batch, inputs_.steps, config_.vocab});
    std::vector<Input> inputs(static_cast<size_t>(inputs_.batch));
    for (int64_t s = 0; s < inputs_.steps; ++s) {
      for (size_t r = 0; r < inputs.size(); ++r) {
        inputs[r] = {{&inputs_.step_ids[r][static_cast<size_t>(s)], 1}, slots_[r].index()};
      }
      const Tensor logits = engine_.last_logits(inputs);
      for (int64_t r = 0; r < inputs_.batch; ++r) {
        std::copy_n(logits.row<float>(r), config_.vocab, all.row<float>(r * inputs_.steps + s));
      }
    }
  }

  Engine& engine_;
  Inputs& inputs_;
  const Options& options_;
  const ModelConfig& config_;
  std::vector<Slot> slots_;
  int64_t begun_ = 0;  // tokens that entries per token had at the beginning, in the longest row
  Outputs outputs_;
};

void run(const Options& o) {
  if (!o.input) throw UsageError("--input: must name a safetensors file, got nothing");
  if (!o.output) throw UsageError("--output: must name the file to write, got nothing");
  Inputs inputs = read_inputs(*o.input);
  require(inputs.states.empty() || !o.attentions, "forward: --attentions must go without state.* arrays, got both");
  const std::filesystem::path folder = o.model.folder();
  const auto threads = o.model.start_threads();
  const auto model = o.model.load(folder, *threads);
  // All rows in one ragged batch, whatever the chunk.
  Engine engine(
      *model, *threads,
      {.slots = inputs.batch, .chunk = o.run.chunk, .batch = inputs.batch * o.run.chunk, .state = o.run.state});
  Forward(engine, inputs, o)().write(*o.output);
}

}  // namespace

Run prepare_forward(Flags& flags) {
  const auto o = std::make_shared<Options>();
  flags.text("--input", "IN", o->input,
             "safetensors: input_ids [B,L] int64, or inputs_embeds [B,L,d_model]; optional attention_mask [B,L] (0 = "
             "padding), labels [B,L] (-100 ignored; each position is scored on the label of the next unmasked one), "
             "step_ids [B,S] fed one by one afterwards; state.{i}.{kind} as --states writes them, to go on from, with "
             "state_lengths [B] int64, how many tokens each row has read (default: as many as keys have room for, else "
             "0)");
  flags.text("--output", "OUT", o->output,
             "safetensors, float32: logits [B,L,V] (zero at masked positions), last_hidden_state, loss, step_logits");
  o->model.add(flags);
  flags.flag("--hidden-states", o->hidden_states, "Also hidden_states.{i}: 0 after the embedding, i after layer i");
  flags.flag("--states", o->states, "Also state.{i}.{kind}, after input_ids and before step_ids");
  flags.flag("--router-logits", o->router_logits,
             "Also router_logits.{i} [B*L, experts] of layers with experts, and aux_loss");
  flags.flag("--attentions", o->attentions, "Also attentions.{i} [B, heads, L, L] of layers with attention");
  flags.integer("--logits-to-keep", o->logits_to_keep, {0, int64_t{1} << 40},
                "logits and last_hidden_state of the last N positions alone [B,N,...]; 0: of all");
  o->run.add(flags);
  flags.footer(
      "Masked positions are taken out of their rows, wherever they are: a row's results are those of the row alone.");
  return [o] { run(*o); };
}

}  // namespace elapid::cli
