#include "elapid/state/state.h"

#include "elapid/core/error.h"
#include "elapid/io/safetensors.h"
#include "elapid/state/pool.h"

#include <cstring>
#include <fstream>
#include <gtest/gtest.h>
#include <unistd.h>

namespace elapid {
namespace {

namespace fs = std::filesystem;

std::shared_ptr<const StateSpec> make_spec(const std::string& fingerprint = "f00d", int64_t heads = 2) {
  auto spec = std::make_shared<StateSpec>();
  for (int64_t layer = 0; layer < 12; ++layer) {  // two-digit layers: files sort names as text
    spec->entries.push_back({"conv", layer, {3, 5}});
    spec->entries.push_back({"ssm", layer, {heads, 3, 4}});
  }
  spec->fingerprint = [fingerprint] { return fingerprint; };
  return spec;
}

// Writes values that tell entry, slot and element apart.
void fill(const StatePool& pool, const StateSpec& spec, const Slot& slot, float base) {
  for (size_t i = 0; i < spec.entries.size(); ++i) {
    const Tensor row = pool.entry(static_cast<int64_t>(i)).slice(slot.index(), slot.index() + 1);
    for (int64_t j = 0; j < row.size(); ++j) {
      row.ptr<float>()[j] = base + static_cast<float>(1000 * i) + static_cast<float>(j);
    }
  }
}

class StateTest : public ::testing::Test {
 protected:
  StateTest() : folder_(fs::temp_directory_path() / concat("elapid_state_test_", getpid())) {
    fs::create_directories(folder_);
  }
  ~StateTest() override { fs::remove_all(folder_); }
  [[nodiscard]] fs::path file(const std::string& name) const { return folder_ / name; }

  // Message of the Error that `action` throws.
  template <class Action>
  static std::string error_of(const Action& action) {
    try {
      action();
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  }

 private:
  fs::path folder_;
};

TEST_F(StateTest, SlotsAreZeroedLeasedAndReturned) {
  const auto spec = make_spec();
  StatePool pool(spec, 2);
  {
    const Slot a = pool.acquire(), b = pool.acquire();
    EXPECT_NE(a.index(), b.index());
    EXPECT_EQ(pool.available(), 0);
    EXPECT_EQ(error_of([&] { pool.acquire(); }), "state pool: must have a free slot, got all 2 taken");
    fill(pool, *spec, a, 1);
    fill(pool, *spec, b, 2);
  }
  EXPECT_EQ(pool.available(), 2);
  const Slot again = pool.acquire();
  for (size_t i = 0; i < spec->entries.size(); ++i) {
    const Tensor row = pool.entry(static_cast<int64_t>(i)).slice(again.index(), again.index() + 1);
    for (int64_t j = 0; j < row.size(); ++j) ASSERT_EQ(row.ptr<float>()[j], 0) << "entry " << i << " element " << j;
  }
}

TEST_F(StateTest, BytesPerSequenceIsTheSumOfEntries) {
  EXPECT_EQ(make_spec()->bytes_per_sequence(), 12 * (3 * 5 + 2 * 3 * 4) * 4);
}

TEST_F(StateTest, ForkAndSnapshotAreIndependentCopies) {
  const auto spec = make_spec();
  StatePool pool(spec, 3);
  const Slot a = pool.acquire();
  fill(pool, *spec, a, 7);
  const std::vector<TokenId> ids = {3, 1, 4};
  const State before = pool.save(a, ids);
  const Slot fork = pool.fork(a);
  EXPECT_TRUE(pool.save(fork, ids) == before);
  fill(pool, *spec, a, 8);
  EXPECT_TRUE(pool.save(fork, ids) == before);
  EXPECT_FALSE(pool.save(a, ids) == before);
  pool.load(a, before);
  EXPECT_TRUE(pool.save(a, ids) == before);
  EXPECT_FALSE(pool.save(a, std::vector<TokenId>{3, 1}) == before);
}

TEST_F(StateTest, FileRoundTripIsExactIncludingNaNBits) {
  const auto spec = make_spec();
  StatePool pool(spec, 1);
  const Slot slot = pool.acquire();
  fill(pool, *spec, slot, 0.1f);
  const uint32_t odd_nan = 0x7fc12345;
  std::memcpy(pool.entry(1).data, &odd_nan, sizeof odd_nan);
  pool.advance(slot.index(), 3);
  const State saved = pool.save(slot, std::vector<TokenId>{5, 0, 2147483647}, std::vector<TokenId>{9});
  saved.write(file("a.state"));
  const State read = State::read(file("a.state"));
  EXPECT_TRUE(read == saved);
  EXPECT_EQ(std::vector<TokenId>(read.pending().begin(), read.pending().end()), std::vector<TokenId>{9});

  StatePool other_process(make_spec(), 1);  // another spec object, the same fingerprint
  const Slot target = other_process.acquire();
  other_process.load(target, read);
  EXPECT_TRUE(other_process.save(target, read.tokens(), read.pending()) == saved);
}

TEST_F(StateTest, RecurrentStatesInBf16AreFloat32InSnapshots) {
  auto spec = std::make_shared<StateSpec>(*make_spec());
  for (StateEntry& e : spec->entries) e.recurrent = e.kind == "ssm";
  StatePool wide(spec, 1), narrow(spec, 3, DType::bf16);
  EXPECT_EQ(narrow.bytes_per_sequence(), 12 * (3 * 5 * 4 + 2 * 3 * 4 * 2));
  EXPECT_EQ(wide.bytes_per_sequence(), spec->bytes_per_sequence());
  const Slot from = wide.acquire(), to = narrow.acquire();
  fill(wide, *spec, from, 0.25f);
  narrow.load(to, wide.save(from, {}));
  const Slot fork = narrow.fork(to), again = narrow.acquire();
  const State rounded = narrow.save(fork, {});
  narrow.load(again, rounded);
  for (int64_t i = 0; i < 24; ++i) {
    const bool recurrent = spec->entries[static_cast<size_t>(i)].recurrent;
    const Tensor entry = narrow.entry(i), exact = wide.entry(i);
    ASSERT_EQ(entry.dtype, recurrent ? DType::bf16 : DType::f32);
    const auto value = [&](const Slot& slot, int64_t j) {
      const Tensor row = entry.slice(slot.index(), slot.index() + 1);
      return recurrent ? to_float(row.ptr<BFloat16>()[j]) : row.ptr<float>()[j];
    };
    for (int64_t j = 0; j < exact.size(); ++j) {
      const float was = exact.ptr<float>()[j], want = recurrent ? to_float(to_bf16(was)) : was;
      EXPECT_EQ(value(to, j), want);
      EXPECT_EQ(value(again, j), want);
    }
  }
  EXPECT_EQ(error_of([&] { StatePool(spec, 1, DType::f16); }),
            "state pool: states must be held in f32 or bf16, got f16");
}

TEST_F(StateTest, AnotherModelsStateIsRefused) {
  StatePool pool(make_spec("aaaa"), 1), other(make_spec("bbbb"), 1);
  const Slot slot = pool.acquire(), target = other.acquire();
  const State state = pool.save(slot, {});
  state.write(file("a.state"));
  const std::string expected = "load state: must belong to this model (fingerprint bbbb), got aaaa";
  EXPECT_EQ(error_of([&] { other.load(target, state); }), expected);
  EXPECT_EQ(error_of([&] { other.load(target, State::read(file("a.state"))); }), expected);
  // A fingerprint can be forged; shapes are checked all the same.
  StatePool wider(make_spec("aaaa", 3), 1);
  const Slot wide = wider.acquire();
  EXPECT_NE(
      error_of([&] { wider.load(wide, State::read(file("a.state"))); }).find("entries must be those of this model"),
      std::string::npos);
  EXPECT_NE(error_of([&] { other.load(slot, state); }).find("the pool it came from"), std::string::npos);
}

TEST_F(StateTest, WeightsAreReadOnceForAllFiles) {
  auto spec = std::make_shared<StateSpec>(*make_spec());
  const auto times = std::make_shared<int>(0);
  spec->fingerprint = [times] {
    ++*times;
    return std::string("f00d");
  };
  StatePool pool(spec, 1);
  const Slot slot = pool.acquire();
  pool.load(slot, pool.save(slot, {}));
  EXPECT_EQ(*times, 0);  // no file, no need
  for (int i = 0; i < 3; ++i) {
    pool.save(slot, {}).write(file("a.state"));
    pool.load(slot, State::read(file("a.state")));
  }
  EXPECT_EQ(*times, 1);
}

TEST_F(StateTest, DamagedFilesAreErrors) {
  StatePool pool(make_spec(), 1);
  const Slot slot = pool.acquire();
  pool.advance(slot.index(), 2);
  pool.save(slot, std::vector<TokenId>{1, 2}).write(file("good.state"));
  std::ifstream in(file("good.state"), std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(in)), {});
  const auto parse = [](const std::string& bytes) {
    return State::parse(std::as_bytes(std::span(bytes.data(), bytes.size())), "x.state");
  };
  EXPECT_TRUE(parse(good) == State::read(file("good.state")));
  for (const size_t length : {size_t{0}, size_t{7}, size_t{8}, good.size() / 2, good.size() - 1}) {
    EXPECT_THROW(parse(good.substr(0, length)), Error) << length;
  }

  std::string flipped = good;
  flipped.back() = static_cast<char>(flipped.back() ^ 1);
  EXPECT_NE(error_of([&] { parse(flipped); }).find("x.state: values must have the checksum "), std::string::npos);

  const std::map<std::string, std::string> meta = {
      {"format", "elapid.state"}, {"version", "1"}, {"fingerprint", "f00d"}, {"dtype", "f32"}};
  int64_t ids[2] = {1, 2};
  float values[2] = {1, 2};
  const Tensor id_tensor(ids, DType::i64, {2}), value_tensor(values, DType::f32, {2});
  const auto error_with = [&](std::vector<NamedTensor> tensors, std::map<std::string, std::string> metadata) {
    write_safetensors(file("bad.state"), tensors, metadata);
    return error_of([&] { State::read(file("bad.state")); });
  };
  const auto changed = [&](const std::string& key, const std::string& value) {
    auto copy = meta;
    copy[key] = value;
    return copy;
  };
  const NamedTensor tokens{"tokens", id_tensor}, pending{"pending", id_tensor};
  EXPECT_EQ(error_with({tokens, pending}, meta), "no error");
  EXPECT_NE(error_with({tokens, pending}, {}).find("must be a state file"), std::string::npos);
  EXPECT_NE(error_with({tokens, pending}, changed("version", "2")).find("state version must be 1, got 2"),
            std::string::npos);
  EXPECT_NE(error_with({tokens, pending}, changed("dtype", "bf16")).find("dtype must be f32"), std::string::npos);
  EXPECT_NE(error_with({tokens}, meta).find("pending"), std::string::npos);
  EXPECT_NE(error_with({{"tokens", value_tensor}, pending}, meta).find("tokens must be a list of i64"),
            std::string::npos);
  EXPECT_NE(error_with({tokens, pending, {"state.x.conv", value_tensor}}, meta).find("got state.x.conv"),
            std::string::npos);
  EXPECT_NE(error_with({tokens, pending, {"state.99999999999.conv", value_tensor}}, meta).find("state.<layer>.<kind>"),
            std::string::npos);
  EXPECT_NE(error_with({tokens, pending, {"state.0.conv", id_tensor}}, meta).find("must be f32, got i64"),
            std::string::npos);
  ids[1] = -1;
  EXPECT_NE(error_with({tokens, pending}, meta).find("must hold token ids, got -1"), std::string::npos);
}

}  // namespace
}  // namespace elapid
