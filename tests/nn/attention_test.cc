#include "elapid/nn/attention.h"

#include "elapid/ops/causal_conv1d/causal_conv1d_reference.h"
#include "elapid/state/pool.h"
#include "tests/nn/bodies.h"

namespace elapid::testing {
namespace {

using reference::Expected;
using reference::kExpError;
using reference::kRounding;
using reference::kUnderflow;
using reference::roundings;
using reference::Sequences;

struct Case {
  AttentionConfig config;
  Ragged ragged;
  DType dtype = DType::f32;
};

void add_columns(Expected& to, const Expected& what, int64_t column) {
  for (int64_t t = 0; t < what.value.rows; ++t) {
    for (int64_t i = 0; i < what.value.cols; ++i) {
      to.value(t, column + i) = what.value(t, i);
      to.tolerance(t, column + i) = what.tolerance(t, i);
    }
  }
}

Expected columns(const Expected& from, int64_t begin, int64_t end) {
  Expected part(from.value.rows, end - begin);
  for (int64_t t = 0; t < from.value.rows; ++t) {
    for (int64_t i = begin; i < end; ++i) {
      part.value(t, i - begin) = from.value(t, i);
      part.tolerance(t, i - begin) = from.tolerance(t, i);
    }
  }
  return part;
}

Expected convolve(const Expected& x, const Weights& w, const AttentionConfig& c, const Sequences& sequences) {
  const reference::Matrix taps = w["conv1d.weight"];
  Expected y = reference::causal_conv1d({x.value, taps, w["conv1d.bias"], {}, false},
                                        {sequences.offsets, std::vector<int64_t>(sequences.slots.size(), kNoSlot)})
                   .y;
  for (int64_t s = 0; s < sequences.count(); ++s) {
    for (int64_t t = sequences.begin(s); t < sequences.end(s); ++t) {
      for (int64_t k = 0; k < c.d_conv; ++k) {
        const int64_t at = t - c.d_conv + 1 + k;
        if (at < sequences.begin(s)) continue;
        for (int64_t i = 0; i < x.value.cols; ++i) {
          y.tolerance(t, i) += (1 + 1e-3) * std::abs(taps(k, i)) * x.tolerance(at, i);
        }
      }
    }
  }
  return y;
}

// Positions begin at 0: nothing is in the pool yet.
Expected rotate(const Expected& x, int64_t heads, const AttentionConfig& c, double alpha, const Sequences& sequences) {
  Expected y(x.value.rows, x.value.cols);
  const auto pairs = static_cast<int64_t>(c.inverse_frequencies.size());
  for (int64_t s = 0; s < sequences.count(); ++s) {
    for (int64_t t = sequences.begin(s); t < sequences.end(s); ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t column = h * c.head_dim;
        const auto put = [&](int64_t to, int64_t a, double fa, int64_t b, double fb) {
          const double va = x.value(t, column + a), vb = x.value(t, column + b);
          y.value(t, column + to) = fa * va + fb * vb;
          y.tolerance(t, column + to) =
              (1 + 1e-3) * (std::abs(fa) * x.tolerance(t, column + a) + std::abs(fb) * x.tolerance(t, column + b)) +
              3 * kRounding * (std::abs(fa * va) + std::abs(fb * vb)) + 4 * kUnderflow;
        };
        for (int64_t d = 0; d < c.head_dim; ++d) put(d, d, alpha, d, 0);
        for (int64_t i = 0; i < pairs; ++i) {
          const int64_t a = c.rotary_interleaved ? 2 * i : i, b = c.rotary_interleaved ? 2 * i + 1 : i + pairs;
          const double angle = static_cast<double>(t - sequences.begin(s)) *
                               static_cast<double>(c.inverse_frequencies[static_cast<size_t>(i)]);
          const double factor = alpha * static_cast<double>(c.rotary_scaling);
          put(a, a, factor * std::cos(angle), b, -factor * std::sin(angle));
          put(b, b, factor * std::cos(angle), a, factor * std::sin(angle));
        }
      }
    }
  }
  return y;
}

// Softmax over what came before, of operands that have errors: a score's error is a relative one of its weight, and
// moves the mean of the values by the weight times the value's distance from it.
Expected attend(const Expected& q, const Expected& k, const Expected& v, const AttentionConfig& c,
                const Sequences& sequences) {
  Expected y(q.value.rows, q.value.cols);
  const auto scale = static_cast<double>(c.scale);
  for (int64_t s = 0; s < sequences.count(); ++s) {
    const int64_t begin = sequences.begin(s);
    for (int64_t t = begin; t < sequences.end(s); ++t) {
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t from = h / (c.heads / c.kv_heads) * c.head_dim, to = h * c.head_dim;
        std::vector<double> weights, errors;
        double most = -std::numeric_limits<double>::infinity(), total = 0;
        for (int64_t j = begin; j <= t; ++j) {
          double sum = 0, error = 0;
          for (int64_t d = 0; d < c.head_dim; ++d) {
            const double a = q.value(t, to + d), b = k.value(j, from + d);
            sum += scale * a * b;
            error += scale *
                     ((std::abs(a) + q.tolerance(t, to + d)) * k.tolerance(j, from + d) +
                      std::abs(b) * q.tolerance(t, to + d) + kRounding * (2 + roundings(c.head_dim)) * std::abs(a * b));
          }
          weights.push_back(sum);
          errors.push_back(error);
          most = std::max(most, sum);
        }
        for (size_t j = 0; j < weights.size(); ++j) {
          // Differences, exponentials, merged blocks, sums.
          errors[j] += kRounding * (most - weights[j] + 3 * (kExpError + 2) + 2 * roundings(t - begin + 1));
          weights[j] = std::exp(weights[j] - most);
          total += weights[j];
        }
        for (int64_t d = 0; d < c.head_dim; ++d) {
          double mean = 0, error = 0;
          for (int64_t j = begin; j <= t; ++j) {
            mean += weights[static_cast<size_t>(j - begin)] / total * v.value(j, from + d);
          }
          for (int64_t j = begin; j <= t; ++j) {
            const double w = weights[static_cast<size_t>(j - begin)] / total, value = v.value(j, from + d);
            error += w * (v.tolerance(j, from + d) +
                          errors[static_cast<size_t>(j - begin)] * (std::abs(value) + std::abs(mean)));
          }
          y.value(t, to + d) = mean;
          y.tolerance(t, to + d) = (1 + 1e-3) * error + kRounding * std::abs(mean) + 8 * kUnderflow;
        }
      }
    }
  }
  return y;
}

// The formula of attention.h, written out.
Expected expected(const AttentionConfig& c, const Weights& w, const Tensor& h, const Tensor& add, float alpha,
                  const Sequences& sequences) {
  const Expected x = exact(reference::matrix_of(h));
  const int64_t q_end = c.q_dim(), k_end = q_end + c.kv_dim();
  Expected qkv = project(x, w["qkv_proj.weight"], w["qkv_proj.bias"]);
  if (c.adapter_rank > 0) {
    const Expected low = project(x, w["adapter.a.weight"]);
    const int64_t ends[] = {0, q_end, k_end, c.qkv_dim()};
    const char* names[] = {"adapter.b_q.weight", "adapter.b_k.weight", "adapter.b_v.weight"};
    for (int64_t i = 0; i < 3; ++i) {
      add_columns(qkv,
                  project(columns(low, i * c.adapter_rank, (i + 1) * c.adapter_rank), w[names[i]], {},
                          columns(qkv, ends[i], ends[i + 1])),
                  ends[i]);
    }
  }
  if (c.d_conv > 0) qkv = convolve(qkv, w, c, sequences);
  const Expected q = rotate(columns(qkv, 0, q_end), c.heads, c, 1, sequences);
  const Expected k =
      rotate(columns(qkv, q_end, k_end), c.kv_heads, c, static_cast<double>(c.key_multiplier), sequences);
  const Expected y = attend(q, k, columns(qkv, k_end, c.qkv_dim()), c, sequences);
  return project(y, w["out_proj.weight"], w["out_proj.bias"], exact(reference::matrix_of(add)),
                 static_cast<double>(alpha));
}

Operation make(Workbench& bench, const Case& c) {
  auto spec = std::make_shared<StateSpec>();
  const auto body = std::make_shared<Attention>(c.config, 3, *spec);
  const Weights weights(bench, *body, c.dtype);
  Sequences sequences = sequences_of(c.ragged);
  const int64_t tokens = sequences.offsets.back(), slots = ragged_pool_rows(c.ragged);
  sequences.past.assign(sequences.slots.size(), 0);
  const Tensor h = bench.matrix(tokens, c.config.d_in, {-2, 2}, false);
  const Tensor residual = bench.matrix(tokens, c.config.d_model, kMixed, false);
  bench.writable(residual);
  const float alpha = 0.5f;
  const Expected want = expected(c.config, weights, h, residual, alpha, sequences);
  const Batch batch = bench.batch(sequences);
  const auto run = [=](Context& ctx) {
    StatePool pool(spec, slots);
    std::vector<Slot> taken;
    for (int64_t i = 0; i < slots; ++i) taken.push_back(pool.acquire());
    for (int64_t s = 0; s < sequences.count(); ++s) {
      if (sequences.slot(s) >= 0) pool.extend(sequences.slot(s), sequences.end(s) - sequences.begin(s));
    }
    body->forward(ctx, h, {.alpha = alpha, .add = residual, .out = residual}, {.batch = batch, .states = &pool});
    return std::vector{residual};
  };
  return {run, {want}};
}

std::string describe_case(const Case& c) {
  const AttentionConfig& a = c.config;
  return concat(describe(c.ragged), ", ", a.d_in, " -> ", a.heads, " of ", a.head_dim, " kv ", a.kv_heads, " -> ",
                a.d_model, ", pairs ", a.inverse_frequencies.size(), a.rotary_interleaved ? " interleaved" : "",
                " conv ", a.d_conv, " key times ", a.key_multiplier, " adapter ", a.adapter_rank, " ",
                name_of(c.dtype));
}

std::vector<float> frequencies(int64_t pairs) {
  std::vector<float> f;
  for (int64_t i = 0; i < pairs; ++i) {
    f.push_back(static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(pairs))));
  }
  return f;
}

// Every option, alone and together.
std::vector<AttentionConfig> configs() {
  const AttentionConfig plain{.d_in = 40, .d_model = 40, .heads = 4, .kv_heads = 2, .head_dim = 16, .scale = 0.25f};
  std::vector<AttentionConfig> all(9, plain);
  all[1].inverse_frequencies = frequencies(8);
  all[2].inverse_frequencies = frequencies(3);
  all[2].rotary_interleaved = true;
  all[2].rotary_scaling = 1.2f;
  all[3].qkv_bias = all[3].out_bias = true;
  all[4].d_conv = 4;
  all[5].d_conv = 2;
  all[5].conv_bias = false;
  all[5].inverse_frequencies = frequencies(8);
  all[6].key_multiplier = 0.3f;
  all[6].inverse_frequencies = frequencies(5);
  all[7].key_multiplier = 0.3f;
  all[8] = {.d_in = 36,
            .d_model = 18,
            .heads = 3,
            .kv_heads = 3,
            .head_dim = 12,
            .scale = 0.4f,
            .inverse_frequencies = frequencies(6),
            .adapter_rank = 5};
  return all;
}

TEST(AttentionBody, IsItsFormula) {
  Op<Case> op{"attention body", {}, describe_case, make, false, kSmallestBodyShare};
  size_t i = 0;
  for (const AttentionConfig& config : configs()) {
    for (const Ragged& ragged :
         {Ragged{{5, 1, 70, 0, 2}, Slots::mixed}, Ragged{{1, 1}, Slots::permuted}, Ragged{{20}, Slots::none}}) {
      op.cases.push_back({config, ragged, i++ % 4 == 3 ? DType::bf16 : DType::f32});
    }
  }
  check_forward(op);
}

TEST(AttentionBody, DeclaresWhatItRemembers) {
  StateSpec spec;
  const Attention plain(configs()[0], 3, spec), convolved(configs()[4], 7, spec);
  ASSERT_EQ(spec.entries.size(), 5u);
  EXPECT_EQ(spec.entries[0], (StateEntry{"key", 3, {2, 16}, StateExtent::per_token}));
  EXPECT_EQ(spec.entries[1], (StateEntry{"value", 3, {2, 16}, StateExtent::per_token}));
  EXPECT_EQ(spec.entries[2], (StateEntry{"conv", 7, {3, 128}}));
  EXPECT_EQ(spec.bytes_per_sequence(), 3 * 128 * 4);
  EXPECT_EQ(spec.bytes_per_token(), 4 * 2 * 16 * 4);
}

TEST(AttentionBody, ConfigurationsThatCannotBeAreErrors) {
  const auto refused = [](auto change) {
    AttentionConfig c = configs()[1];
    change(c);
    StateSpec spec;
    EXPECT_THROW(Attention(c, 0, spec), Error);
  };
  refused([](AttentionConfig& c) { c.kv_heads = 3; });
  refused([](AttentionConfig& c) { c.kv_heads = 0; });
  refused([](AttentionConfig& c) { c.head_dim = 15; });
  refused([](AttentionConfig& c) { c.head_dim = 0; });
}

}  // namespace
}  // namespace elapid::testing
