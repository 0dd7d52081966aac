#include "elapid/text/decode.h"

#include "elapid/text/byte_level.h"
#include "elapid/text/json_fields.h"
#include "elapid/text/normalize.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <memory>

namespace elapid {
namespace {

// Collects a token that came in parts.
class TokenStage : public Stage {
 public:
  explicit TokenStage(Stage& next) : Stage(&next) {}
  void begin(Origin) override {}
  void feed(std::string_view text, bool last) final {
    if (held_.empty() && last) {
      token(text);
      return;
    }
    held_.append(text);
    if (!last) return;
    token(held_);
    held_.clear();
  }

 protected:
  virtual void token(std::string_view text) = 0;
  void emit(std::string_view text) {
    next().begin(Origin::behind);
    next().feed(text, true);
  }

 private:
  std::string held_;
};

// All tokens are one piece of bytes; a token that is not spelled in byte characters stands for its own bytes.
class ByteLevelDecodeStage final : public TokenStage {
 public:
  explicit ByteLevelDecodeStage(Stage& next) : TokenStage(next) {}
  void finish() override {
    lossy_.finish(text_);
    if (!begun_) next().begin(Origin::behind);
    next().feed(text_, true);
    text_.clear();
    begun_ = false;
    next().finish();
  }

 private:
  void token(std::string_view text) override {
    bytes_.clear();
    for (size_t at = 0; at < text.size();) {
      const unicode::Decoded code = unicode::decode(text.data() + at);
      const int byte = spelled_byte(code.code);
      if (byte < 0) {
        bytes_ = text;
        break;
      }
      bytes_.push_back(static_cast<char>(byte));
      at += static_cast<size_t>(code.length);
    }
    lossy_.push(bytes_, text_);
    if (text_.empty()) return;
    if (!begun_) next().begin(Origin::behind);
    begun_ = true;
    next().feed(text_, false);
    text_.clear();
  }

  unicode::LossyDecoder lossy_;
  std::string bytes_, text_;
  bool begun_ = false;
};

// Runs of "<0xAB>" are bytes: of a valid text, or else each a U+FFFD. So a run has to end before any of it is certain.
class ByteFallbackStage final : public TokenStage {
 public:
  explicit ByteFallbackStage(Stage& next) : TokenStage(next) {}
  void finish() override {
    end_run();
    next().finish();
  }

 private:
  static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  }

  static int byte_of(std::string_view token) {
    if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
    // Rust's parser, which the reference uses, allows a sign.
    const int high = token[3] == '+' ? 0 : hex_digit(token[3]), low = hex_digit(token[4]);
    return high < 0 || low < 0 ? -1 : 16 * high + low;
  }

  void token(std::string_view text) override {
    const int byte = byte_of(text);
    if (byte >= 0) {
      run_.push_back(static_cast<char>(byte));
      return;
    }
    end_run();
    emit(text);
  }

  void end_run() {
    if (run_.empty()) return;
    if (unicode::valid_utf8_prefix(run_) == run_.size()) {
      emit(run_);
    } else {
      for (size_t i = 0; i < run_.size(); ++i) emit(unicode::kReplacement);
    }
    run_.clear();
  }

  std::string run_;
};

// All tokens become one.
class FuseStage final : public Stage {
 public:
  explicit FuseStage(Stage& next) : Stage(&next) {}
  void begin(Origin origin) override {
    if (!begun_) next().begin(origin);
    begun_ = true;
  }
  void feed(std::string_view text, bool) override {
    if (!text.empty()) next().feed(text, false);
  }
  void finish() override {
    begin(Origin::behind);
    next().feed({}, true);
    begun_ = false;
    next().finish();
  }

 private:
  bool begun_ = false;
};

// Removes up to so many of one character at a token's start and end.
class StripTokenStage final : public BufferedStage {
 public:
  StripTokenStage(Stage& next, std::string content, int64_t start, int64_t stop)
      : BufferedStage(&next), content_(std::move(content)), start_(start), stop_(stop) {}
  void begin(Origin origin) override {
    to_strip_ = start_;
    Stage::begin(origin);
  }

 private:
  size_t process(std::string_view text, bool last) override {
    size_t begin = 0;
    for (; to_strip_ > 0 && begin < text.size(); --to_strip_) {
      if (!text.substr(begin).starts_with(content_)) {
        to_strip_ = 0;
        break;
      }
      begin += content_.size();
    }
    size_t end = text.size();
    for (int64_t i = 0; i < stop_ && end > begin && text.substr(begin, end - begin).ends_with(content_); ++i) {
      end -= content_.size();
    }
    next().feed(text.substr(begin, end - begin), last);
    return last ? text.size() : end;
  }

  std::string content_;
  int64_t start_, stop_;
  int64_t to_strip_ = 0;
};

// The replacement character is a space, but in the first token, where it is nothing unless nothing was ever prepended.
class MetaspaceDecodeStage final : public Stage {
 public:
  MetaspaceDecodeStage(Stage& next, std::string replacement, bool prepends)
      : Stage(&next), replacement_(std::move(replacement)), prepends_(prepends) {}
  void feed(std::string_view text, bool last) override {
    text_.clear();
    for (size_t at = 0; at < text.size();) {
      const size_t found = std::min(text.find(replacement_, at), text.size());
      text_.append(text.substr(at, found - at));
      if (found < text.size() && !(first_ && prepends_)) text_.push_back(' ');
      at = found + replacement_.size();
    }
    next().feed(text_, last);
    if (last) first_ = false;
  }
  void finish() override {
    first_ = true;
    next().finish();
  }

 private:
  std::string replacement_;
  bool prepends_;
  bool first_ = true;
  std::string text_;
};

class SpacedStage final : public Stage {
 public:
  explicit SpacedStage(Stage& next) : Stage(&next) {}
  void begin(Origin origin) override {
    if (!first_) {
      next().begin(Origin::behind);
      next().feed(" ", true);
    }
    first_ = false;
    next().begin(origin);
  }
  void feed(std::string_view text, bool last) override { next().feed(text, last); }
  void finish() override {
    first_ = true;
    next().finish();
  }

 private:
  bool first_ = true;
};

void append_decoder(const Json& json, const std::string& what, std::vector<StageFactory>& stages) {
  const std::string type = string_field(json, "type", what);
  const std::string here = what + " " + type;
  if (type == "Sequence") {
    for (const Json& item : array_field(json, "decoders", here)) append_decoder(item, what, stages);
  } else if (type == "ByteLevel") {
    stages.push_back(make_stage<ByteLevelDecodeStage>());
  } else if (type == "ByteFallback") {
    stages.push_back(make_stage<ByteFallbackStage>());
  } else if (type == "Fuse") {
    stages.push_back(make_stage<FuseStage>());
  } else if (type == "Replace") {
    stages.push_back(parse_replace(json, here));
  } else if (type == "Strip") {
    constexpr int64_t kMost = int64_t{1} << 31;
    stages.push_back(
        make_stage<StripTokenStage>(character_field(json, "content", here),
                                    json_integer(object_field(json, "start", here), here + " start", 0, kMost),
                                    json_integer(object_field(json, "stop", here), here + " stop", 0, kMost)));
  } else if (type == "Metaspace") {
    const bool never = has_field(json, "prepend_scheme") && string_field(json, "prepend_scheme", here) == "never";
    stages.push_back(make_stage<MetaspaceDecodeStage>(character_field(json, "replacement", here),
                                                      !never && bool_field(json, "add_prefix_space", true, here)));
  } else {
    fail(concat(what, ": the type ", quote(type), " is not supported"));
  }
}

}  // namespace

std::vector<StageFactory> parse_decoder(const Json& json, const std::string& what) {
  if (json.is_null()) return {make_stage<SpacedStage>()};
  std::vector<StageFactory> stages;
  append_decoder(json, what, stages);
  return stages;
}

}  // namespace elapid
