#pragma once

// The text pipelines (encoding: added tokens, normalizers, pre-tokenizers, BPE; decoding: the decoders) are chains of
// stages. Text flows through a chain as pieces: a segment between added tokens, a word, a decoded token. A piece may
// arrive in parts of any size, and a stage hands on at once what no text to come can change, so that the same chain
// serves a whole text and a stream at bounded memory.

#include "elapid/core/error.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace elapid {

// Where a piece begins: with the first character of the original text, with that of a text which goes on from another
// one and hence gets nothing in front, or behind it.
enum class Origin : uint8_t { text, continued, behind };

class Stage {
 public:
  explicit Stage(Stage* next) : next_(next) {}
  virtual ~Stage() = default;
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  // A piece begins.
  virtual void begin(Origin origin) { next_->begin(origin); }
  // The piece goes on, in whole characters; `last`: and ends with this part.
  virtual void feed(std::string_view text, bool last) = 0;
  // There are no more pieces.
  virtual void finish() { next_->finish(); }

 protected:
  [[nodiscard]] Stage& next() const { return *next_; }

 private:
  Stage* next_;  // null for the last one
};

// Makes a stage in front of another. Immutable data (expressions, tables) is shared by all that it makes.
using StageFactory = std::function<std::unique_ptr<Stage>(Stage& next)>;

// A stage that keeps what it cannot decide yet.
class BufferedStage : public Stage {
 public:
  using Stage::Stage;

  void feed(std::string_view text, bool last) final {
    if (held_.empty()) {
      const size_t done = process(text, last);
      if (!last) held_.assign(text.substr(done));
    } else {
      held_.append(text);
      // Looking again only once the text has doubled keeps the time linear when nothing can be decided for long.
      if (!last && held_.size() < look_again_) return;
      const size_t done = process(held_, last);
      if (!last) held_.erase(0, done);
    }
    if (last) held_.clear();
    look_again_ = 2 * held_.size();
  }

 protected:
  // Takes what is certain of the text so far and returns how many bytes need not be shown again; all of it when last.
  virtual size_t process(std::string_view text, bool last) = 0;

 private:
  std::string held_;
  size_t look_again_ = 0;
};

// A file can ask for replacements of replacements, each larger than the last: what one step may make of a piece of text
// at a time is bounded.
inline void require_bounded(std::string_view made) {
  constexpr size_t kMost = size_t{1} << 28;
  require(made.size() <= kMost, "tokenizer: a step grows the text beyond ", kMost, " bytes");
}

// The end of a chain that makes text.
class TextSink final : public Stage {
 public:
  TextSink() : Stage(nullptr) {}
  void begin(Origin) override {}
  void feed(std::string_view text, bool) override { text_.append(text); }
  void finish() override {}

  [[nodiscard]] std::string take() { return std::exchange(text_, {}); }

 private:
  std::string text_;
};

// The stages that factories make, in front of a sink that outlives them.
class Chain {
 public:
  Chain(const std::vector<StageFactory>& factories, Stage& sink) : front_(&sink) {
    for (auto factory = factories.rbegin(); factory != factories.rend(); ++factory) {
      stages_.push_back((*factory)(*front_));
      front_ = stages_.back().get();
    }
  }
  [[nodiscard]] Stage& front() const { return *front_; }

 private:
  std::vector<std::unique_ptr<Stage>> stages_;
  Stage* front_;
};

template <class T, class... Args>
StageFactory make_stage(Args... args) {
  return [args...](Stage& next) { return std::make_unique<T>(next, args...); };
}

}  // namespace elapid
