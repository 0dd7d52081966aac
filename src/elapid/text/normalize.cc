#include "elapid/text/normalize.h"

#include "elapid/text/byte_level.h"
#include "elapid/text/json_fields.h"
#include "elapid/text/regex.h"
#include "elapid/text/unicode.h"

#include <memory>

namespace elapid {
namespace {

class UnicodeStage final : public BufferedStage {
 public:
  UnicodeStage(Stage& next, unicode::NormalForm form) : BufferedStage(&next), form_(form) {}

 private:
  // Stable characters pass as they are; a run of others is normalized together with the one before it, and the last
  // character is kept, because what follows may compose with it.
  size_t process(std::string_view text, bool last) override {
    size_t copied = 0;  // up to here the text is handed on or in result_
    size_t before = 0;  // the last stable character
    size_t at = 0;
    while (at < text.size()) {
      const unicode::Decoded code = unicode::decode(text.data() + at);
      if (unicode::is_stable(form_, code.code)) {
        before = at;
        at += static_cast<size_t>(code.length);
        continue;
      }
      const size_t begin = before;
      while (at < text.size()) {
        const unicode::Decoded mark = unicode::decode(text.data() + at);
        if (unicode::is_stable(form_, mark.code)) break;
        at += static_cast<size_t>(mark.length);
      }
      if (at == text.size() && !last) {
        before = begin;
        break;
      }
      result_.append(text.substr(copied, begin - copied));
      unicode::append_normalized(form_, text.substr(begin, at - begin), result_);
      copied = before = at;
    }
    const size_t done = last ? text.size() : before;
    if (result_.empty()) {
      next().feed(text.substr(copied, done - copied), last);
    } else {
      result_.append(text.substr(copied, done - copied));
      next().feed(result_, last);
      result_.clear();
    }
    return done;
  }

  unicode::NormalForm form_;
  std::string result_;
};

class LowercaseStage final : public Stage {
 public:
  explicit LowercaseStage(Stage& next) : Stage(&next) {}
  void feed(std::string_view text, bool last) override {
    lower_.clear();
    for (size_t at = 0; at < text.size();) {
      const unicode::Decoded code = unicode::decode(text.data() + at);
      unicode::append_lower(lower_, code.code);
      at += static_cast<size_t>(code.length);
    }
    next().feed(lower_, last);
  }

 private:
  std::string lower_;
};

class PrependStage final : public Stage {
 public:
  PrependStage(Stage& next, std::string prefix) : Stage(&next), prefix_(std::move(prefix)) {}
  void begin(Origin origin) override {
    fresh_ = origin != Origin::continued;
    Stage::begin(origin);
  }
  void feed(std::string_view text, bool last) override {
    if (fresh_ && !text.empty()) {
      next().feed(prefix_, false);
      fresh_ = false;
    }
    next().feed(text, last);
  }

 private:
  std::string prefix_;
  bool fresh_ = true;
};

class StripStage final : public BufferedStage {
 public:
  StripStage(Stage& next, bool left, bool right) : BufferedStage(&next), left_(left), right_(right) {}
  void begin(Origin origin) override {
    origin_ = origin;
    begun_ = false;
    stripped_ = false;
  }

 private:
  size_t process(std::string_view text, bool last) override {
    size_t begin = 0;
    while (left_ && origin_ != Origin::continued && !begun_ && begin < text.size()) {
      const unicode::Decoded code = unicode::decode(text.data() + begin);
      if (!unicode::is_space(code.code)) break;
      begin += static_cast<size_t>(code.length);
      stripped_ = true;
    }
    size_t end = text.size();
    while (right_ && end > begin) {
      const size_t character = unicode::last_character(text.substr(0, end));
      if (!unicode::is_space(unicode::decode(text.data() + character).code)) break;
      end = character;
    }
    if (!begun_ && (end > begin || last)) {
      next().begin(stripped_ ? Origin::behind : origin_);
      begun_ = true;
    }
    if (begun_) next().feed(text.substr(begin, end - begin), last);
    return last ? text.size() : end;
  }

  bool left_, right_;
  Origin origin_ = Origin::behind;
  bool begun_ = false;
  bool stripped_ = false;
};

class ReplaceStage final : public BufferedStage {
 public:
  ReplaceStage(Stage& next, std::shared_ptr<const Regex> regex, std::string content)
      : BufferedStage(&next), regex_(std::move(regex)), scanner_(*regex_), content_(std::move(content)) {}
  void begin(Origin origin) override {
    scanner_.start();
    context_ = 0;
    origin_ = origin;
    begun_ = false;
  }

 private:
  size_t process(std::string_view text, bool last) override {
    size_t at = context_;
    RegexScanner::Event event;
    result_.clear();
    while (scanner_.next(text, at, last, event)) {
      const std::string_view piece = text.substr(event.begin, event.end - event.begin);
      if (!begun_) {
        // What replaces several characters counts as standing where the last of them stood.
        const bool moved = event.match && !piece.empty() && (content_.empty() || unicode::last_character(piece) > 0);
        next().begin(moved ? Origin::behind : origin_);
        begun_ = true;
      }
      result_.append(event.match ? std::string_view(content_) : piece);
      require_bounded(result_);
      at = event.end;
    }
    if (last && !begun_) next().begin(origin_);
    if (last || !result_.empty()) next().feed(result_, last);
    context_ = scanner_.context(text, at);
    return at - context_;
  }

  std::shared_ptr<const Regex> regex_;
  RegexScanner scanner_;
  std::string content_;
  std::string result_;
  size_t context_ = 0;
  Origin origin_ = Origin::behind;
  bool begun_ = false;
};

class ByteSpellingStage final : public Stage {
 public:
  explicit ByteSpellingStage(Stage& next) : Stage(&next) {}
  void feed(std::string_view text, bool last) override {
    spelled_.clear();
    for (const char byte : text) spelled_.append(byte_spelling(static_cast<unsigned char>(byte)));
    require_bounded(spelled_);
    next().feed(spelled_, last);
  }

 private:
  std::string spelled_;
};

}  // namespace

StageFactory byte_level_spelling() { return make_stage<ByteSpellingStage>(); }

StageFactory parse_replace(const Json& json, const std::string& what) {
  const std::string content = string_field(json, "content", what);
  return make_stage<ReplaceStage>(parse_pattern(json, what), content);
}

std::vector<StageFactory> parse_normalizer(const Json& json, const std::string& what) {
  if (json.is_null()) return {};
  const std::string type = string_field(json, "type", what);
  const std::string here = what + " " + type;
  if (type == "Sequence") {
    std::vector<StageFactory> all;
    for (const Json& item : array_field(json, "normalizers", here)) {
      for (StageFactory& factory : parse_normalizer(item, what)) all.push_back(std::move(factory));
    }
    return all;
  }
  if (type == "NFC") return {make_stage<UnicodeStage>(unicode::NormalForm::nfc)};
  if (type == "NFD") return {make_stage<UnicodeStage>(unicode::NormalForm::nfd)};
  if (type == "NFKC") return {make_stage<UnicodeStage>(unicode::NormalForm::nfkc)};
  if (type == "NFKD") return {make_stage<UnicodeStage>(unicode::NormalForm::nfkd)};
  if (type == "Lowercase") return {make_stage<LowercaseStage>()};
  if (type == "Prepend") return {make_stage<PrependStage>(string_field(json, "prepend", here))};
  if (type == "Replace") return {parse_replace(json, here)};
  if (type == "Strip") {
    const bool left = bool_field(json, "strip_left", true, here), right = bool_field(json, "strip_right", true, here);
    return {make_stage<StripStage>(left, right)};
  }
  if (type == "ByteLevel") return {byte_level_spelling()};
  fail(concat(what, ": the type ", quote(type), " is not supported"));
}

}  // namespace elapid
