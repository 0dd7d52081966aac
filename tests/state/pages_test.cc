// Per-token entries: pages, sharing and snapshots.

#include "elapid/core/error.h"
#include "elapid/io/safetensors.h"
#include "elapid/state/pool.h"

#include <fstream>
#include <gtest/gtest.h>
#include <unistd.h>

namespace elapid {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kHeads = 2, kHeadDim = 3, kWidth = kHeads * kHeadDim;

// Two layers that attend, and one body beside them whose kinds sort between theirs.
std::shared_ptr<const StateSpec> attending() {
  auto spec = std::make_shared<StateSpec>();
  for (const int64_t layer : {2, 10}) {
    spec->entries.push_back({"ssm", layer, {2, 4}});
    spec->entries.push_back({"key", layer, {kHeads, kHeadDim}, StateExtent::per_token});
    spec->entries.push_back({"value", layer, {kHeads, kHeadDim}, StateExtent::per_token});
  }
  spec->fingerprint = [] { return std::string("f00d"); };
  return spec;
}

// What an attending model does: extend, write, advance. Values tell entry, token, element and writer apart.
void feed(StatePool& pool, const StateSpec& spec, int64_t slot, int64_t tokens, float writer) {
  pool.extend(slot, tokens);
  const int64_t past = pool.length(slot);
  for (size_t i = 0; i < spec.entries.size(); ++i) {
    const Tensor memory = pool.entry(static_cast<int64_t>(i));
    if (!spec.entries[i].per_token()) {
      for (int64_t j = 0; j < 8; ++j) memory.ptr<float>()[slot * 8 + j] += writer + static_cast<float>(i);
      continue;
    }
    for (int64_t t = past; t < past + tokens; ++t) {
      const int64_t page = pool.page_table().slice(slot, slot + 1).ptr<int32_t>()[t / kPageTokens];
      float* row = memory.ptr<float>() + (page * kPageTokens + t % kPageTokens) * kWidth;
      for (int64_t j = 0; j < kWidth; ++j) {
        row[j] = writer + static_cast<float>(i) * 0.25f + static_cast<float>(t * kWidth + j);
      }
    }
  }
  pool.advance(slot, tokens);
}

// A slot that was fed these numbers of tokens by these writers, in a pool of its own.
State fresh(const std::vector<std::pair<int64_t, float>>& pieces) {
  const auto spec = attending();
  StatePool pool(spec, 1);
  const Slot slot = pool.acquire();
  for (const auto& [tokens, writer] : pieces) feed(pool, *spec, slot.index(), tokens, writer);
  return pool.save(slot, {});
}

bool same_values(const State& a, const State& b) {
  if (a.length() != b.length() || a.entry_count() != b.entry_count()) return false;
  for (int64_t i = 0; i < a.entry_count(); ++i) {
    const Tensor x = a.entry(i), y = b.entry(i);
    if (x.shape != y.shape || !std::equal(x.ptr<float>(), x.ptr<float>() + x.size(), y.ptr<float>())) return false;
  }
  return true;
}

int64_t pages_of(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

TEST(Pages, BytesAreCountedForSequenceAndToken) {
  EXPECT_EQ(attending()->bytes_per_sequence(), 2 * 8 * 4);
  EXPECT_EQ(attending()->bytes_per_token(), 4 * kWidth * 4);
}

TEST(Pages, AModelThatDoesNotAttendHasNoneButItsLengthIsKnown) {
  auto spec = std::make_shared<StateSpec>();
  spec->entries.push_back({"ssm", 0, {8}});
  StatePool pool(spec, 2);
  EXPECT_FALSE(pool.page_table());
  const Slot a = pool.acquire();
  pool.extend(a.index(), int64_t{1} << 40);
  pool.advance(a.index(), int64_t{1} << 40);
  EXPECT_EQ(pool.length(a.index()), int64_t{1} << 40);
  EXPECT_EQ(pool.pages_in_use(), 0);
  const Slot b = pool.fork(a);
  EXPECT_EQ(pool.length(b.index()), int64_t{1} << 40);
}

TEST(Pages, GrowAsTokensComeAndComeBackWithTheSlot) {
  const auto spec = attending();
  StatePool pool(spec, 2);
  EXPECT_EQ(pool.entry(1).shape[1], kPageTokens);
  EXPECT_EQ(pool.entry(1).shape[2], kWidth);
  {
    const Slot a = pool.acquire(), b = pool.acquire();
    EXPECT_EQ(pool.length(a.index()), 0);
    EXPECT_EQ(pool.pages_in_use(), 0);
    for (int64_t t = 0; t < 200; ++t) {
      feed(pool, *spec, a.index(), 1, 1);
      EXPECT_EQ(pool.length(a.index()), t + 1);
      EXPECT_EQ(pool.pages_in_use(), pages_of(t + 1));
    }
    feed(pool, *spec, b.index(), 65, 2);
    EXPECT_EQ(pool.pages_in_use(), 4 + 2);
    // Asking twice takes nothing more.
    pool.extend(b.index(), 63);
    pool.extend(b.index(), 63);
    EXPECT_EQ(pool.pages_in_use(), 4 + 2);
    EXPECT_TRUE(same_values(pool.save(b, {}), fresh({{65, 2}})));
  }
  EXPECT_EQ(pool.pages_in_use(), 0);
  const Slot again = pool.acquire();
  EXPECT_EQ(pool.length(again.index()), 0);
  feed(pool, *spec, again.index(), 130, 3);
  EXPECT_TRUE(same_values(pool.save(again, {}), fresh({{130, 3}})));
  // Pages are used again before new ones are taken.
  const int32_t* row = pool.page_table().slice(again.index(), again.index() + 1).ptr<int32_t>();
  for (int64_t p = 0; p < 3; ++p) EXPECT_LT(row[p], 6);
}

TEST(Pages, AGrowingSequenceNeverMoves) {
  const auto spec = attending();
  StatePool pool(spec, 3);
  const Slot a = pool.acquire(), b = pool.acquire();
  const void *memory = pool.entry(1).data, *table = pool.page_table().data;
  for (int64_t fed = 0; fed < 10'000; fed += 500) {
    feed(pool, *spec, a.index(), 500, 1);
    feed(pool, *spec, b.index(), 250, 2);
  }
  EXPECT_EQ(pool.length(a.index()), 10'000);
  EXPECT_EQ(pool.pages_in_use(), pages_of(10'000) + pages_of(5'000));
  EXPECT_EQ(pool.entry(1).data, memory);
  EXPECT_EQ(pool.page_table().data, table);
  // Keys of layer 2 follow from the token alone.
  const State state = pool.save(a, {});
  const Tensor keys = state.entry(0);
  EXPECT_EQ(state.declared(0).kind, "key");
  ASSERT_EQ(keys.shape, Shape(10'000, kHeads, kHeadDim));
  for (int64_t i = 0; i < keys.size(); ++i) ASSERT_EQ(keys.ptr<float>()[i], 1.25f + static_cast<float>(i));
  StatePool other(attending(), 1);
  const Slot target = other.acquire();
  other.load(target, state);
  EXPECT_TRUE(same_values(other.save(target, {}), state));
}

TEST(Pages, ForksShareFullPagesAndCopyThePartialOneWhenTheyWrite) {
  for (const int64_t length : {1, 63, 64, 65, 128, 200}) {
    SCOPED_TRACE(length);
    const auto spec = attending();
    StatePool pool(spec, 3);
    Slot a = pool.acquire();
    feed(pool, *spec, a.index(), length, 1);
    const Slot b = pool.fork(a), c = pool.fork(a);
    EXPECT_EQ(pool.length(b.index()), length);
    EXPECT_EQ(pool.pages_in_use(), pages_of(length));
    feed(pool, *spec, b.index(), 1, 100);
    EXPECT_EQ(pool.pages_in_use(), pages_of(length) + 1) << "a copy, or a new page";
    feed(pool, *spec, c.index(), 3, 200);
    feed(pool, *spec, a.index(), 1, 300);
    // The last of the three to write has the partial page for itself.
    EXPECT_EQ(pool.pages_in_use(),
              length / kPageTokens + 2 * pages_of(length % kPageTokens + 1) + pages_of(length % kPageTokens + 3));
    EXPECT_TRUE(same_values(pool.save(a, {}), fresh({{length, 1}, {1, 300}})));
    EXPECT_TRUE(same_values(pool.save(b, {}), fresh({{length, 1}, {1, 100}})));
    EXPECT_TRUE(same_values(pool.save(c, {}), fresh({{length, 1}, {3, 200}})));
    a = Slot();  // the shared pages survive their first owner
    EXPECT_TRUE(same_values(pool.save(b, {}), fresh({{length, 1}, {1, 100}})));
    // A fork of a fork that nobody writes to costs nothing.
    const int64_t before = pool.pages_in_use();
    const Slot d = pool.fork(b);
    EXPECT_EQ(pool.pages_in_use(), before);
  }
}

TEST(Pages, AForkIgnoresPagesThatWereAskedForButNotFilled) {
  const auto spec = attending();
  StatePool pool(spec, 2);
  const Slot a = pool.acquire();
  feed(pool, *spec, a.index(), 10, 1);
  pool.extend(a.index(), 200);  // and then the call failed
  const Slot b = pool.fork(a);
  feed(pool, *spec, b.index(), 100, 2);
  feed(pool, *spec, a.index(), 100, 3);
  EXPECT_TRUE(same_values(pool.save(a, {}), fresh({{10, 1}, {100, 3}})));
  EXPECT_TRUE(same_values(pool.save(b, {}), fresh({{10, 1}, {100, 2}})));
}

TEST(Pages, LoadingReplacesWhatWasThere) {
  const auto spec = attending();
  StatePool pool(spec, 2);
  const Slot a = pool.acquire();
  feed(pool, *spec, a.index(), 70, 1);
  const State short_state = pool.save(a, std::vector<TokenId>{1, 2});
  feed(pool, *spec, a.index(), 300, 2);
  const Slot fork = pool.fork(a);
  pool.load(a, short_state);
  EXPECT_EQ(pool.length(a.index()), 70);
  EXPECT_TRUE(pool.save(a, std::vector<TokenId>{1, 2}) == short_state);
  feed(pool, *spec, a.index(), 5, 9);
  EXPECT_TRUE(same_values(pool.save(a, {}), fresh({{70, 1}, {5, 9}})));
  EXPECT_TRUE(same_values(pool.save(fork, {}), fresh({{70, 1}, {300, 2}})));
  EXPECT_EQ(pool.pages_in_use(), pages_of(75) + pages_of(370));
}

TEST(Pages, MuchThatIsFreedGoesBackToTheMachineAndIsUsableAgain) {
  auto spec = std::make_shared<StateSpec>();
  spec->entries.push_back({"key", 0, {64, 1024}, StateExtent::per_token});  // 16 MiB a page
  StatePool pool(spec, 1);
  for (int round = 0; round < 3; ++round) {
    const Slot slot = pool.acquire();
    pool.extend(slot.index(), 40 * kPageTokens);
    pool.advance(slot.index(), 40 * kPageTokens);
    for (int64_t p = 0; p < 40; ++p) {
      const int32_t page = pool.page_table().ptr<int32_t>()[p];
      EXPECT_LT(page, 40);
      float* first = pool.entry(0).ptr<float>() + page * pool.entry(0).strides[0];
      *first = static_cast<float>(p);
      first[pool.entry(0).strides[0] - 1] = static_cast<float>(-p);
    }
    for (int64_t p = 0; p < 40; ++p) {
      const float* first = pool.entry(0).ptr<float>() + pool.page_table().ptr<int32_t>()[p] * pool.entry(0).strides[0];
      EXPECT_EQ(*first, static_cast<float>(p));
      EXPECT_EQ(first[pool.entry(0).strides[0] - 1], static_cast<float>(-p));
    }
  }
}

TEST(Pages, WhatCannotBeIsAnError) {
  StatePool pool(attending(), 2);
  const Slot a = pool.acquire();
  EXPECT_THROW(pool.extend(1, 1), Error) << "not acquired";
  EXPECT_THROW((void)pool.length(-1), Error);
  EXPECT_THROW((void)pool.length(2), Error);
  EXPECT_THROW(pool.extend(a.index(), Pages::kMostPages * kPageTokens + 1), Error);
  EXPECT_THROW(pool.extend(a.index(), std::numeric_limits<int64_t>::max()), Error);
  feed(pool, *attending(), a.index(), 5, 1);
  EXPECT_TRUE(same_values(pool.save(a, {}), fresh({{5, 1}}))) << "an error leaves what was there";
  auto twice = std::make_shared<StateSpec>(*attending());
  twice->entries.push_back(twice->entries[1]);
  EXPECT_THROW(StatePool(twice, 1), Error);
}

class PagedFile : public ::testing::Test {
 protected:
  PagedFile() : file_(fs::temp_directory_path() / concat("elapid_pages_test_", getpid(), ".state")) {}
  ~PagedFile() override { fs::remove(file_); }

  std::string error_with(const std::vector<NamedTensor>& tensors, const std::map<std::string, std::string>& changes) {
    std::map<std::string, std::string> metadata = {
        {"format", "elapid.state"}, {"version", "1"}, {"fingerprint", "f00d"}, {"dtype", "f32"}};
    for (const auto& [key, value] : changes) metadata[key] = value;
    write_safetensors(file_, tensors, metadata);
    try {
      (void)State::read(file_);
    } catch (const Error& e) {
      return e.what();
    }
    return "no error";
  }

  fs::path file_;
};

TEST_F(PagedFile, RoundTripIsExactAtAnyLength) {
  for (const int64_t length : {0, 1, 64, 100}) {
    const auto spec = attending();
    StatePool pool(spec, 1);
    const Slot slot = pool.acquire();
    feed(pool, *spec, slot.index(), length, 1);
    const std::vector<TokenId> tokens(static_cast<size_t>(length), 4);
    const State saved = pool.save(slot, tokens, std::vector<TokenId>{6});
    saved.write(file_);
    const State read = State::read(file_);
    EXPECT_TRUE(read == saved);
    EXPECT_EQ(read.length(), length);
    StatePool other(attending(), 1);  // as if in another process
    const Slot target = other.acquire();
    other.load(target, read);
    EXPECT_EQ(other.length(target.index()), length);
    feed(other, *spec, target.index(), 70, 2);
    feed(pool, *spec, slot.index(), 70, 2);
    EXPECT_TRUE(other.save(target, {}) == pool.save(slot, {}));
  }
}

TEST_F(PagedFile, FilesWithoutALengthHaveThatOfTheirTokens) {
  int64_t ids[3] = {1, 2, 3};
  const Tensor tokens(ids, DType::i64, {3}), none(ids, DType::i64, {0});
  ASSERT_EQ(error_with({{"tokens", tokens}, {"pending", none}}, {}), "no error");
  EXPECT_EQ(State::read(file_).length(), 3);
}

TEST_F(PagedFile, DamagedOnesAreErrors) {
  int64_t ids[2] = {1, 2};
  float values[24] = {};
  const Tensor id_tensor(ids, DType::i64, {2}), keys(values, DType::f32, {2, 4, 3});
  const std::vector<NamedTensor> tensors = {{"tokens", id_tensor}, {"pending", id_tensor}, {"state.3.key", keys}};
  EXPECT_EQ(error_with(tensors, {}), "no error");
  EXPECT_EQ(error_with(tensors, {{"per_token", "3.key"}}), "no error");
  EXPECT_EQ(State::read(file_).declared(0).shape, Shape(4, 3));
  const std::vector<NamedTensor> untold = {
      {"tokens", Tensor(ids, DType::i64, {0})}, {"pending", id_tensor}, {"state.3.key", keys}};
  EXPECT_EQ(error_with(untold, {{"per_token", "3.key"}, {"length", "2"}}), "no error");
  EXPECT_NE(error_with(untold, {{"per_token", "3.key"}, {"length", "3"}}).find("must have 3 tokens, got 2"),
            std::string::npos);
  EXPECT_NE(error_with(tensors, {{"length", "3"}}).find("length must be that of tokens, 2, got 3"), std::string::npos);
  EXPECT_NE(error_with(tensors, {{"per_token", "3.key 3.value"}}).find("got no state.3.value"), std::string::npos);
  for (const char* length : {"", "-1", "2x", "99999999999999999999"}) {
    EXPECT_NE(error_with(tensors, {{"length", length}}).find("length must be a number"), std::string::npos) << length;
  }
  const Tensor scalar(values, DType::f32, Shape());
  EXPECT_NE(
      error_with({{"tokens", id_tensor}, {"pending", id_tensor}, {"state.3.key", scalar}}, {{"per_token", "3.key"}})
          .find("must have 2 tokens"),
      std::string::npos);
  // Declared per token, but fixed in the model: another model's.
  ASSERT_EQ(error_with(tensors, {{"per_token", "3.key"}}), "no error");
  auto fixed = std::make_shared<StateSpec>();
  fixed->entries.push_back({"key", 3, {4, 3}});
  fixed->fingerprint = [] { return std::string("f00d"); };
  StatePool pool(fixed, 1);
  const Slot slot = pool.acquire();
  EXPECT_THROW(pool.load(slot, State::read(file_)), Error);
}

}  // namespace
}  // namespace elapid
