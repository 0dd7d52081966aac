#include "elapid/text/sentencepiece.h"

#include "elapid/core/error.h"
#include "elapid/io/json.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <utility>

namespace elapid {
namespace {

using Piece = SentencePieceModel::Piece;
using Type = SentencePieceModel::Type;

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581

// --- The file: a message of Protocol Buffers. https://protobuf.dev/programming-guides/encoding/

class Message {
 public:
  Message(std::string_view bytes, const std::string& what) : rest_(bytes), what_(what) {}

  struct Field {
    uint64_t number = 0;
    uint64_t value = 0;      // of numbers, fixed32 ones as their bits
    std::string_view bytes;  // of texts and messages
  };

  bool next(Field& field) {
    if (rest_.empty()) return false;
    const uint64_t key = varint();
    field = {key >> 3, 0, {}};
    switch (key & 7) {
      case 0: field.value = varint(); return true;
      case 1: std::memcpy(&field.value, take(8).data(), 8); return true;
      case 2: field.bytes = take(varint()); return true;
      case 5: std::memcpy(&field.value, take(4).data(), 4); return true;
      default: fail(concat(what_, ": must be a SentencePiece model, got a field of the unknown kind ", key & 7));
    }
  }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    fail(concat(what_, ": must be a SentencePiece model, got a number of more than 64 bits"));
  }

  std::string_view take(uint64_t size) {
    require(size <= rest_.size(), what_, ": must be a whole SentencePiece model, got one that ends ",
            size - rest_.size(), " bytes too early");
    const std::string_view taken = rest_.substr(0, static_cast<size_t>(size));
    rest_.remove_prefix(static_cast<size_t>(size));
    return taken;
  }

  std::string_view rest_;
  const std::string& what_;
};

Piece parse_piece(std::string_view bytes, const std::string& what) {
  Piece piece;
  Message message(bytes, what);
  for (Message::Field field; message.next(field);) {
    if (field.number == 1) piece.text = field.bytes;
    if (field.number == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    if (field.number == 3) {
      require(field.value >= 1 && field.value <= 6, what, ": the type of a piece must be 1 to 6, got ", field.value);
      piece.type = static_cast<Type>(field.value);
    }
  }
  require(!piece.text.empty(), what, ": a piece must not be empty, got 0 bytes");
  // Merges come from all ways of cutting a piece in two.
  constexpr size_t kMostBytes = 256;
  require(piece.text.size() <= kMostBytes, what, ": a piece must have at most ", kMostBytes, " bytes, got ",
          piece.text.size());
  const bool valid = unicode::valid_utf8_prefix(piece.text) == piece.text.size();
  if (!valid) fail(concat(what, ": a piece must be valid UTF-8, got ", quote(piece.text)));
  if (std::isnan(piece.score)) fail(concat(what, ": the score of ", quote(piece.text), " must be a number, got NaN"));
  return piece;
}

struct TrainerSpec {
  uint64_t model_type = 1;
  int64_t unknown = 0, bos = 1, eos = 2;
};

void parse_trainer(std::string_view bytes, const std::string& what, SentencePieceModel& model, TrainerSpec& spec) {
  Message message(bytes, what);
  for (Message::Field field; message.next(field);) {
    switch (field.number) {
      case 3: spec.model_type = field.value; break;
      case 24: require(field.value == 0, what, ": treat_whitespace_as_suffix is not supported"); break;
      case 35: model.byte_fallback = field.value != 0; break;
      case 40: spec.unknown = static_cast<int64_t>(field.value); break;
      case 41: spec.bos = static_cast<int64_t>(field.value); break;
      case 42: spec.eos = static_cast<int64_t>(field.value); break;
      case 44:
        model.unknown_surface = field.bytes;
        require(unicode::valid_utf8_prefix(field.bytes) == field.bytes.size(), what,
                ": unk_surface must be valid UTF-8");
        break;
      default: break;
    }
  }
}

void parse_normalizer(std::string_view bytes, const std::string& what, SentencePieceModel& model) {
  bool removes_spaces = true;
  Message message(bytes, what);
  for (Message::Field field; message.next(field);) {
    switch (field.number) {
      case 2:
        require(field.bytes.empty(), what, ": only the identity normalization is supported, got a table of ",
                field.bytes.size(), " bytes");
        break;
      case 3: model.adds_prefix = field.value != 0; break;
      case 4: removes_spaces = field.value != 0; break;
      case 5: require(field.value != 0, what, ": escape_whitespaces must be true, got false"); break;
      default: break;
    }
  }
  require(!removes_spaces, what, ": remove_extra_whitespaces must be false, got true");
}

// "<0xAB>" → 0xAB, or -1.
int byte_of(std::string_view text) {
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const int high = digit(text[3]), low = digit(text[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

// --- Stages

class SpacesStage final : public Stage {
 public:
  SpacesStage(Stage& next, bool adds_prefix) : Stage(&next), adds_prefix_(adds_prefix) {}
  void begin(Origin origin) override {
    prefix_due_ = adds_prefix_ && origin == Origin::text;
    Stage::begin(origin);
  }
  void feed(std::string_view text, bool last) override {
    out_.clear();
    if (!text.empty() && std::exchange(prefix_due_, false)) out_ += kSpace;
    for (size_t at = 0; at < text.size();) {
      const size_t space = std::min(text.find(' ', at), text.size());
      out_ += text.substr(at, space - at);
      if (space < text.size()) out_ += kSpace;
      at = space + 1;
    }
    next().feed(out_, last);
  }

 private:
  bool adds_prefix_, prefix_due_ = false;
  std::string out_;
};

// Tokens → text: runs of bytes are characters as far as they are valid, each byte that is not becomes U+FFFD; the space
// that was added in front of the text goes.
class PiecesStage final : public Stage {
 public:
  PiecesStage(Stage& next, bool drops_prefix) : Stage(&next), drops_prefix_(drops_prefix) {}
  void begin(Origin) override {}
  void feed(std::string_view text, bool last) override {
    token_ += text;
    if (!last) return;
    const int byte = byte_of(token_);
    if (byte >= 0) {
      run_ += static_cast<char>(byte);
      flush_bytes(false);
    } else {
      flush_bytes(true);
      piece(token_);
    }
    token_.clear();
    emit();
  }
  void finish() override {
    flush_bytes(true);
    emit();
    expects_prefix_ = true;
    prefix_seen_ = any_text_ = false;
    next().finish();
  }

 private:
  void flush_bytes(bool ends) {
    size_t at = 0;
    while (at < run_.size()) {
      const unicode::Utf8Step step = unicode::utf8_step(std::string_view(run_).substr(at));
      if (step.kind == unicode::Utf8Step::incomplete && !ends) break;
      if (step.kind == unicode::Utf8Step::valid) {
        out_ += run_.substr(at, static_cast<size_t>(step.length));
        at += static_cast<size_t>(step.length);
      } else {
        out_ += unicode::kReplacement;
        ++at;
      }
    }
    run_.erase(0, at);
  }

  void piece(std::string_view text) {
    any_text_ = any_text_ || !out_.empty();
    if (prefix_seen_ || any_text_) expects_prefix_ = false;
    prefix_seen_ = expects_prefix_ && drops_prefix_ && text.starts_with(kSpace);
    if (prefix_seen_) text.remove_prefix(kSpace.size());
    for (size_t at = 0; at < text.size();) {
      const size_t space = std::min(text.find(kSpace, at), text.size());
      out_ += text.substr(at, space - at);
      if (space < text.size()) out_ += ' ';
      at = space + kSpace.size();
    }
  }

  void emit() {
    if (out_.empty()) return;
    any_text_ = true;
    next().begin(Origin::behind);
    next().feed(out_, true);
    out_.clear();
  }

  bool drops_prefix_;
  bool expects_prefix_ = true, prefix_seen_ = false, any_text_ = false;
  std::string token_, run_, out_;
};

}  // namespace

SentencePieceModel SentencePieceModel::parse(std::string_view bytes, const std::string& what) {
  constexpr size_t kMostPieces = size_t{1} << 22, kMostBytes = size_t{1} << 26;
  require(bytes.size() <= kMostBytes, what, ": a SentencePiece model must have at most ", kMostBytes, " bytes, got ",
          bytes.size());
  SentencePieceModel model;
  TrainerSpec spec;
  bool normalizes = false;
  Message message(bytes, what);
  for (Message::Field field; message.next(field);) {
    switch (field.number) {
      case 1:
        require(model.pieces.size() < kMostPieces, what, ": must have at most ", kMostPieces, " pieces, got more");
        model.pieces.push_back(parse_piece(field.bytes, what));
        break;
      case 2: parse_trainer(field.bytes, what, model, spec); break;
      case 3:
        parse_normalizer(field.bytes, what, model);
        normalizes = true;
        break;
      case 5: {
        Message denormalizer(field.bytes, what);
        for (Message::Field part; denormalizer.next(part);) {
          require(part.number != 2 || part.bytes.empty(), what, ": denormalization is not supported");
        }
        break;
      }
      default: break;
    }
  }
  require(!model.pieces.empty(), what, ": must be a SentencePiece model, got one without pieces");
  require(spec.model_type == 2, what, ": the model's type must be 2 (BPE), got ", spec.model_type,
          spec.model_type == 1 ? " (unigram)" : "");
  require(normalizes, what, ": must say how to normalize, got nothing (remove_extra_whitespaces is not supported)");
  const auto id_of = [&](int64_t id) -> std::optional<TokenId> {
    return id >= 0 && id < std::ssize(model.pieces) ? std::optional(static_cast<TokenId>(id)) : std::nullopt;
  };
  model.unknown = id_of(spec.unknown);
  model.bos = id_of(spec.bos);
  model.eos = id_of(spec.eos);
  require(model.unknown && model.pieces[static_cast<size_t>(*model.unknown)].type == Type::unknown, what,
          ": the unknown piece must have its type, got id ", spec.unknown);
  return model;
}

BpeParts SentencePieceModel::bpe(const std::string& what) const {
  BpeParts parts;
  parts.unknown = unknown;
  parts.byte_tokens.fill(-1);
  std::vector<float> scores;
  for (size_t id = 0; id < pieces.size(); ++id) {
    const Piece& piece = pieces[id];
    switch (piece.type) {
      case Type::normal:
        parts.vocabulary.emplace(piece.text, static_cast<TokenId>(id));
        scores.push_back(piece.score);
        break;
      case Type::byte: {
        const int byte = byte_of(piece.text);
        if (byte < 0) fail(concat(what, ": a byte piece must be <0x00> to <0xFF>, got ", quote(piece.text)));
        if (byte_fallback) parts.byte_tokens[static_cast<size_t>(byte)] = static_cast<int64_t>(id);
        break;
      }
      case Type::unused: fail(concat(what, ": unused pieces are not supported, got ", quote(piece.text)));
      default: break;
    }
  }
  if (byte_fallback) {
    const auto missing = std::find(parts.byte_tokens.begin(), parts.byte_tokens.end(), -1);
    require(missing == parts.byte_tokens.end(), what, ": must have a piece for every byte, got none for byte ",
            missing - parts.byte_tokens.begin());
  }
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());

  // Any two neighbours merge whose text together is a piece, the piece's score deciding when.
  for (size_t id = 0; id < pieces.size(); ++id) {
    const auto& [text, score, type] = pieces[id];
    if (type != Type::normal) continue;
    const auto rank = std::lower_bound(scores.begin(), scores.end(), score, std::greater<>()) - scores.begin();
    for (size_t at = 0; at < text.size();) {
      const auto length = static_cast<size_t>(unicode::decode(text.data() + at).length);
      // Characters are what merging begins with: one that is no piece itself could not be told from others.
      if (text.size() > length && !parts.vocabulary.contains(text.substr(at, length))) {
        fail(concat(what, ": the characters of a piece must be pieces, got ", quote(text)));
      }
      at += length;
      if (at == text.size()) break;
      const auto left = parts.vocabulary.find(text.substr(0, at));
      const auto right = parts.vocabulary.find(text.substr(at));
      if (left == parts.vocabulary.end() || right == parts.vocabulary.end()) continue;
      parts.merges.push_back({left->second, right->second, static_cast<TokenId>(id), static_cast<int32_t>(rank)});
    }
  }
  return parts;
}

StageFactory SentencePieceModel::normalizer() const { return make_stage<SpacesStage>(adds_prefix); }
StageFactory SentencePieceModel::decoder() const { return make_stage<PiecesStage>(adds_prefix); }

}  // namespace elapid
