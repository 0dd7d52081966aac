// Single operators against torch's float64 results (tests/data/conformance/ops). Each case checks two things: the
// float64 reference equals torch's result to the float32 rounding that the file holds, and the operator is within the
// reference's tolerance of it, at every level.

#include "elapid/io/safetensors.h"
#include "elapid/ops/causal_conv1d/causal_conv1d.h"
#include "elapid/ops/causal_conv1d/causal_conv1d_reference.h"
#include "elapid/ops/cross_entropy/cross_entropy.h"
#include "elapid/ops/cross_entropy/cross_entropy_reference.h"
#include "elapid/ops/rms_norm/rms_norm.h"
#include "elapid/ops/rms_norm/rms_norm_reference.h"
#include "elapid/ops/selective_scan/selective_scan.h"
#include "elapid/ops/selective_scan/selective_scan_reference.h"
#include "elapid/ops/ssd_scan/ssd_scan.h"
#include "elapid/ops/ssd_scan/ssd_scan_reference.h"
#include "tests/ops/harness.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

namespace elapid::testing {
namespace {

using reference::Expected;
using reference::Matrix;
using reference::Sequences;

class CaseFile {
 public:
  explicit CaseFile(const std::string& name)
      : file_(Safetensors::open(std::filesystem::path(ELAPID_SOURCE_DIR) / "tests/data/conformance/ops" /
                                (name + ".safetensors"))),
        attrs_(nlohmann::json::parse(file_.metadata().at("attrs"))) {}

  [[nodiscard]] const nlohmann::json& attrs() const { return attrs_; }
  [[nodiscard]] bool has(const std::string& name) const { return file_.contains(name); }
  [[nodiscard]] Shape shape(const std::string& name) const { return file_.at(name).shape; }
  // Empty when the file has none.
  [[nodiscard]] Matrix matrix(const std::string& name) const {
    if (!has(name)) return {};
    const Tensor& t = file_.at(name);
    return reference::matrix_of(t.shape.rank == 0 ? t.reshape(1) : t);
  }
  [[nodiscard]] std::vector<int64_t> integers(const std::string& name) const {
    if (!has(name)) return {};
    const Tensor& t = file_.at(name);
    std::vector<int64_t> values(static_cast<size_t>(t.size()));
    std::memcpy(values.data(), t.data, values.size() * sizeof(int64_t));
    return values;
  }

 private:
  Safetensors file_;
  nlohmann::json attrs_;
};

// Float32 tensors from matrices, which hold float32 values.
Tensor tensor_of(Workbench& bench, const Matrix& m, Shape shape) {
  if (!m) return {};
  return bench.floats(std::vector<float>(m.values.begin(), m.values.end())).reshape(shape);
}
Tensor tensor_of(Workbench& bench, const Matrix& m) { return tensor_of(bench, m, {m.rows, m.cols}); }

// What an operator must give: torch's result. `exact` is the reference on the file's operands and must be that result,
// to the rounding that the file holds (float64 sums in another order differ by far less than a millionth of the float32
// tolerance); `given` is the reference on the float32 operands that the operator gets, which in two cases differ.
Expected expected_of(const Matrix& torch, const Expected& exact, const Expected& given) {
  EXPECT_EQ(exact.value.values.size(), torch.values.size());
  Expected e{torch, given.tolerance};
  for (size_t i = 0; i < torch.values.size(); ++i) {
    const double rounding = reference::kRounding * std::abs(torch.values[i]) + reference::kUnderflow;
    const double distance = std::abs(exact.value.values[i] - torch.values[i]);
    EXPECT_LE(distance, rounding + 1e-6 * exact.tolerance.values[i]) << "the reference is not torch's at element " << i;
    e.tolerance.values[i] += rounding + std::abs(given.value.values[i] - exact.value.values[i]);
  }
  return e;
}

// Sequences of a [batches, length] batch, cut where seq_idx changes; the last piece of each batch row keeps its state
// in the row's slot.
Sequences sequences_of(int64_t batches, int64_t length, const std::vector<int64_t>& seq_idx) {
  Sequences s;
  for (int64_t b = 0; b < batches; ++b) {
    for (int64_t t = b * length; t < (b + 1) * length; ++t) {
      const auto i = static_cast<size_t>(t);
      const bool last = t + 1 == (b + 1) * length;
      if (!last && (seq_idx.empty() || seq_idx[i] == seq_idx[i + 1])) continue;
      s.offsets.push_back(t + 1);
      s.slots.push_back(last ? b : kNoSlot);
    }
  }
  return s;
}

// [batches, rows, cols] → [batches, cols, rows], all as one matrix of the last dimension.
Matrix transposed(const Matrix& m, int64_t batches) {
  const int64_t rows = m.rows / std::max<int64_t>(batches, 1), cols = m.cols;
  Matrix t(batches * cols, rows);
  for (int64_t b = 0; b < batches; ++b) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) t(b * cols + c, r) = m(b * rows + r, c);
    }
  }
  return t;
}

std::string name_of_case(const ::testing::TestParamInfo<const char*>& info) { return info.param; }

class Conformance : public ::testing::TestWithParam<const char*> {
 protected:
  void check(Workbench& bench, const Operation& operation) {
    bench.snapshot();
    std::map<Isa, Share> worst;
    check_operation(bench, operation, worst);
    for (const auto& [isa, share] : worst) RecordProperty(std::string(name_of(isa)) + "_share", concat(share.worst));
  }
};

using SsdConformance = Conformance;
TEST_P(SsdConformance, MatchesTorch) {
  const CaseFile file(GetParam());
  const Shape x = file.shape("in.x"), b = file.shape("in.B");
  const int64_t batches = x[0], length = x[1], heads = x[2], head_dim = x[3], groups = b[2], d_state = b[3];
  const bool varlen = file.has("out.varlen_states");
  Sequences sequences = sequences_of(batches, length, file.integers("in.seq_idx"));
  if (varlen) {
    ASSERT_EQ(sequences.offsets, file.integers("in.cu_seqlens"));
    for (int64_t s = 0; s < sequences.count(); ++s) sequences.slots[static_cast<size_t>(s)] = s;
  }
  const int64_t slots = varlen ? sequences.count() : batches;

  // Rows are parts of a token in the file and tokens in the operator; the elements and their order are the same.
  const auto by_token = [&](const char* name, int64_t width) {
    Matrix m = file.matrix(name);
    if (m) m.rows = batches * length, m.cols = width;
    return m;
  };
  const nlohmann::json& limit = file.attrs().at("dt_limit");
  reference::SsdScanInputs exact;
  exact.x = by_token("in.x", heads * head_dim);
  exact.dt = by_token("in.dt", heads);
  exact.B = by_token("in.B", groups * d_state);
  exact.C = by_token("in.C", groups * d_state);
  exact.A = file.matrix("in.A");
  exact.D = file.matrix("in.D");
  exact.dt_bias = file.matrix("in.dt_bias");
  exact.groups = groups;
  exact.dt_min = limit[0].get<double>();
  if (!limit[1].is_null()) exact.dt_max = limit[1].get<double>();
  exact.state = file.matrix("in.initial_states");
  if (!exact.state) exact.state = Matrix(slots * heads * head_dim, d_state);
  if (!file.attrs().at("dt_softplus").get<bool>()) {
    // The operator always applies softplus: give it what softplus maps to dt.
    for (double& dt : exact.dt.values) dt = std::log(std::expm1(dt));
  }
  const auto narrow = [](double v) { return static_cast<double>(static_cast<float>(v)); };
  reference::SsdScanInputs given = exact;
  for (double& dt : given.dt.values) dt = narrow(dt);
  given.dt_min = narrow(exact.dt_min);
  given.dt_max = narrow(exact.dt_max);

  Matrix y = by_token("out.y", heads * head_dim);
  const Matrix z = by_token("in.z", heads * head_dim);  // the gate is not the operator's part
  for (size_t i = 0; i < z.values.size(); ++i) y.values[i] /= reference::silu(z.values[i]).value;
  const reference::SsdScanExpected ours = reference::ssd_scan(exact, sequences);
  const reference::SsdScanExpected for_given = reference::ssd_scan(given, sequences);
  const Matrix states = file.matrix(varlen ? "out.varlen_states" : "out.final_states");

  Workbench bench(1);
  SsdScan scan;
  scan.x = tensor_of(bench, given.x);
  scan.dt = tensor_of(bench, given.dt);
  scan.B = tensor_of(bench, given.B);
  scan.C = tensor_of(bench, given.C);
  scan.A = tensor_of(bench, given.A, heads);
  scan.D = tensor_of(bench, given.D, static_cast<int64_t>(given.D.values.size()));
  scan.dt_bias = tensor_of(bench, given.dt_bias, heads);
  scan.groups = groups;
  scan.dt_min = static_cast<float>(given.dt_min);
  scan.dt_max = static_cast<float>(given.dt_max);
  const Tensor state = tensor_of(bench, given.state, {slots, heads, head_dim, d_state});
  bench.writable(state);
  const Batch batch = bench.batch(sequences);
  check(bench, {[=](Context& ctx) {
                  return std::vector{ssd_scan(ctx, scan, batch, state), state};
                },
                {expected_of(y, ours.y, for_given.y), expected_of(states, ours.state, for_given.state)}});
}
INSTANTIATE_TEST_SUITE_P(Ops, SsdConformance,
                         ::testing::Values("ssd_full", "ssd_groups", "ssd_limit", "ssd_initial", "ssd_plain",
                                           "ssd_one_step", "ssd_seq_idx", "ssd_cu_seqlens"),
                         name_of_case);

using SelectiveScanConformance = Conformance;
TEST_P(SelectiveScanConformance, MatchesTorch) {
  const CaseFile file(GetParam());
  const Shape u = file.shape("in.u"), b = file.shape("in.B");  // [batches, channels, length], [.., groups, d_state, ..]
  const int64_t batches = u[0], channels = u[1], length = u[2], groups = b[1], d_state = b[2];
  const Sequences sequences = sequences_of(batches, length, {});
  reference::SelectiveScanInputs exact;
  exact.x = transposed(file.matrix("in.u"), batches);
  exact.dt = transposed(file.matrix("in.delta"), batches);
  exact.B = transposed(file.matrix("in.B"), batches);
  exact.C = transposed(file.matrix("in.C"), batches);
  exact.A = file.matrix("in.A");
  exact.D = file.matrix("in.D");
  exact.dt_bias = file.matrix("in.delta_bias");
  exact.z = transposed(file.matrix("in.z"), batches);
  exact.groups = groups;
  exact.state = file.matrix("in.initial_state");
  if (!exact.state) exact.state = Matrix(batches * channels, d_state);
  if (!file.attrs().at("delta_softplus").get<bool>()) {
    // The operator always applies softplus: give it what bias and softplus map to the step.
    for (int64_t t = 0; t < exact.dt.rows; ++t) {
      for (int64_t c = 0; c < channels; ++c) {
        const double bias = exact.dt_bias ? exact.dt_bias[c] : 0.0;
        exact.dt(t, c) = std::log(std::expm1(exact.dt(t, c) + bias)) - bias;
      }
    }
  }
  reference::SelectiveScanInputs given = exact;
  for (double& dt : given.dt.values) dt = static_cast<double>(static_cast<float>(dt));
  const reference::SelectiveScanExpected ours = reference::selective_scan(exact, sequences);
  const reference::SelectiveScanExpected for_given = reference::selective_scan(given, sequences);

  Workbench bench(1);
  SelectiveScan scan;
  scan.x = tensor_of(bench, given.x);
  scan.dt = tensor_of(bench, given.dt);
  scan.B = tensor_of(bench, given.B);
  scan.C = tensor_of(bench, given.C);
  scan.A = tensor_of(bench, given.A);
  scan.D = tensor_of(bench, given.D, channels);
  scan.dt_bias = tensor_of(bench, given.dt_bias, channels);
  scan.z = tensor_of(bench, given.z);
  scan.groups = groups;
  const Tensor state = tensor_of(bench, given.state, {batches, channels, d_state});
  bench.writable(state);
  const Batch batch = bench.batch(sequences);
  check(bench, {[=](Context& ctx) {
                  return std::vector{selective_scan(ctx, scan, batch, state), state};
                },
                {expected_of(transposed(file.matrix("out.y"), batches), ours.y, for_given.y),
                 expected_of(file.matrix("out.final_state"), ours.state, for_given.state)}});
}
INSTANTIATE_TEST_SUITE_P(Ops, SelectiveScanConformance,
                         ::testing::Values("selective_scan_full", "selective_scan_groups", "selective_scan_plain",
                                           "selective_scan_initial", "selective_scan_one_step",
                                           "selective_scan_nosoftplus_bias"),
                         name_of_case);

using ConvConformance = Conformance;
TEST_P(ConvConformance, MatchesTorch) {
  const CaseFile file(GetParam());
  const Shape x = file.shape("in.x");  // [batches, channels, length]
  const int64_t batches = x[0], channels = x[1], length = x[2], taps = file.shape("in.weight")[1];
  const Sequences sequences = sequences_of(batches, length, file.integers("in.seq_idx"));
  reference::CausalConv1dInputs in;
  in.x = transposed(file.matrix("in.x"), batches);
  in.weight = transposed(file.matrix("in.weight"), 1);
  in.bias = file.matrix("in.bias");
  in.state = transposed(file.matrix("in.initial_states"), batches);
  if (!in.state) in.state = Matrix(batches * (taps - 1), channels);
  in.silu = file.attrs().at("activation") == "silu";
  const reference::CausalConv1dExpected ours = reference::causal_conv1d(in, sequences);

  Workbench bench(1);
  const Tensor input = tensor_of(bench, in.x), state = tensor_of(bench, in.state, {batches, taps - 1, channels});
  const CausalConv1d conv{bench.param(tensor_of(bench, in.weight)), bench.param(tensor_of(bench, in.bias)), in.silu};
  bench.writable(state);
  const Batch batch = bench.batch(sequences);
  check(bench, {[=](Context& ctx) {
                  return std::vector{causal_conv1d(ctx, input, conv, batch, state), state};
                },
                {expected_of(transposed(file.matrix("out.y"), batches), ours.y, ours.y),
                 expected_of(transposed(file.matrix("out.final_states"), batches), ours.state, ours.state)}});
}
INSTANTIATE_TEST_SUITE_P(Ops, ConvConformance,
                         ::testing::Values("conv_default", "conv_initial", "conv_short", "conv_w3_noact_nobias",
                                           "conv_w2", "conv_seq_idx"),
                         name_of_case);

using NormConformance = Conformance;
TEST_P(NormConformance, MatchesTorch) {
  const CaseFile file(GetParam());
  ASSERT_FALSE(file.attrs().at("norm_before_gate").get<bool>());
  reference::RmsNormInputs in;
  in.x = file.matrix("in.x");
  in.z = file.matrix("in.z");
  in.weight = file.matrix("in.weight");
  in.eps = file.attrs().at("eps").get<double>();
  const nlohmann::json& group = file.attrs().at("group_size");
  in.groups = group.is_null() ? 1 : in.x.cols / group.get<int64_t>();
  reference::RmsNormInputs given = in;
  const auto eps = static_cast<float>(in.eps);
  given.eps = static_cast<double>(eps);

  Workbench bench(1);
  const Tensor x = tensor_of(bench, in.x), z = tensor_of(bench, in.z);
  const Param weight = bench.param(tensor_of(bench, in.weight));
  const auto run = [=, groups = in.groups](Context& ctx) {
    return std::vector{z ? gated_rms_norm(ctx, x, z, weight, eps, groups) : rms_norm(ctx, x, weight, eps)};
  };
  check(bench, {run, {expected_of(file.matrix("out.y"), reference::rms_norm(in), reference::rms_norm(given))}});
}
INSTANTIATE_TEST_SUITE_P(Ops, NormConformance,
                         ::testing::Values("gated_rmsnorm_norm_after_gate", "gated_rmsnorm_norm_after_gate_groups",
                                           "rmsnorm_no_gate"),
                         name_of_case);

using LossConformance = Conformance;
TEST_P(LossConformance, MatchesTorch) {
  const CaseFile file(GetParam());
  const reference::CrossEntropyInputs in{file.matrix("in.logits"), file.integers("in.labels")};
  const bool mean = file.attrs().at("reduction") == "mean";
  const auto counted = std::count_if(in.labels.begin(), in.labels.end(), [](int64_t l) { return l != kIgnoreLabel; });
  // The reduction is not the operator's part: sums in double, with the tolerances' sum.
  const double factor = mean ? 1 / static_cast<double>(counted) : 1;
  const Expected rows = reference::cross_entropy(in);
  Expected loss(1, 1);
  for (int64_t r = 0; r < rows.value.rows; ++r) {
    loss.value(0, 0) += factor * rows.value(r, 0);
    loss.tolerance(0, 0) += factor * rows.tolerance(r, 0);
  }
  const Expected want = expected_of(file.matrix("out.loss"), loss, loss);
  Workbench bench(1);
  const Tensor logits = tensor_of(bench, in.logits), labels = bench.integers(in.labels);
  for_each_isa([&](Isa) {
    Lab lab(2);
    Context ctx = lab.ctx();
    const Tensor nll = cross_entropy(ctx, logits, labels);
    double total = 0;
    for (int64_t r = 0; r < nll.size(); ++r) total += factor * static_cast<double>(nll.ptr<float>()[r]);
    EXPECT_NEAR(total, want.value(0, 0), want.tolerance(0, 0));
  });
}
INSTANTIATE_TEST_SUITE_P(Ops, LossConformance,
                         ::testing::Values("cross_entropy_mean", "cross_entropy_sum", "cross_entropy_large_logits",
                                           "cross_entropy_none_ignored"),
                         name_of_case);

}  // namespace
}  // namespace elapid::testing
