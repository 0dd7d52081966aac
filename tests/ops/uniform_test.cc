#include "elapid/ops/uniform/uniform.h"

#include "elapid/core/random.h"
#include "tests/ops/harness.h"

#include <cstring>

namespace elapid::testing {
namespace {

TEST(Uniform, IsPhiloxOnEveryLevelAndForAnyThreads) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const int64_t size : {1, 3, 64, 65, 127, 300'000}) {
      const Uniform values{0x123456789abcdef0u, (uint64_t{7} << 32) + 5, -0.3f, 1.7f, {}};
      Workbench bench(1);
      const Tensor want = bench.tensor({1, size}, kMixed, dtype);
      for (int64_t j = 0; j < size; ++j) {
        const auto words = philox(values.seed, static_cast<uint64_t>(j / 4), values.stream);
        const float u = static_cast<float>(words[static_cast<size_t>(j % 4)] >> 8) / 16777216.0f;
        const float v = values.low + u * (values.high - values.low);
        switch (dtype) {
          case DType::f32: want.ptr<float>()[j] = v; break;
          case DType::bf16: want.ptr<BFloat16>()[j] = to_bf16(v); break;
          default: want.ptr<Float16>()[j] = to_f16(v); break;
        }
      }
      for_each_isa([&](Isa isa) {
        for (const int count : kThreadCounts) {
          Uniform got = values;
          got.y = bench.tensor({1, size}, kMixed, dtype);
          bench.writable(got.y);
          bench.snapshot();
          fill_uniform(threads(count), got);
          EXPECT_EQ(bench.damage(), "");
          ASSERT_EQ(std::memcmp(got.y.data, want.data, static_cast<size_t>(want.bytes())), 0)
              << name_of(isa) << ' ' << name_of(dtype) << ' ' << size;
        }
      });
    }
  }
}

}  // namespace
}  // namespace elapid::testing
