#include "elapid/text/bpe.h"

#include "elapid/text/byte_level.h"
#include "elapid/text/json_fields.h"
#include "elapid/text/unicode.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <queue>

namespace elapid {
namespace {

constexpr size_t kShortWord = 32;  // symbols up to which rescanning beats a heap
constexpr size_t kLongWord = 256;  // bytes from which words are cut where nothing can merge

// Words and their ids, per thread and shared by all vocabularies: a colliding word replaces what was there.
struct WordCache {
  static constexpr size_t kEntries = 1 << 14;
  struct alignas(64) Entry {
    uint32_t owner = 0;
    uint8_t length = 0;
    uint8_t count = 0;
    std::array<char, 26> word{};
    std::array<TokenId, 8> ids{};
  };
  static_assert(sizeof(Entry) == 64);

  std::vector<Entry> entries = std::vector<Entry>(kEntries);

  static uint64_t hash(std::string_view word) {
    uint64_t value = word.size();
    for (size_t at = 0; at < word.size(); at += 8) {
      uint64_t eight = 0;
      std::memcpy(&eight, word.data() + at, std::min<size_t>(8, word.size() - at));
      value = (value ^ eight) * 0x9E3779B97F4A7C15u;
      value ^= value >> 32;
    }
    return value;
  }

  Entry& entry(uint32_t owner, std::string_view word) { return entries[(hash(word) + owner) & (kEntries - 1)]; }
};

WordCache& word_cache() {
  thread_local WordCache cache;
  return cache;
}

uint64_t pair_key(uint64_t left, uint64_t right) { return left << 32 | right; }

std::string byte_token_name(int byte) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  return {'<', '0', 'x', digits[static_cast<size_t>(byte) >> 4], digits[static_cast<size_t>(byte) & 15], '>'};
}

// The bytes that a token of a byte-level vocabulary spells; nothing when it has other characters.
std::optional<std::string> spelled_bytes(std::string_view token) {
  std::string bytes;
  for (size_t at = 0; at < token.size();) {
    const unicode::Decoded code = unicode::decode(token.data() + at);
    const int byte = spelled_byte(code.code);
    if (byte < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(byte));
    at += static_cast<size_t>(code.length);
  }
  return bytes;
}

std::atomic<uint32_t> next_cache_owner{1};

}  // namespace

Bpe::Bpe(const Json& json, bool spells_bytes, const std::string& what) : spells_bytes_(spells_bytes) {
  if (has_field(json, "type")) {
    const std::string type = string_field(json, "type", what);
    require(type == "BPE", what, ": the type ", quote(type), " is not supported, only BPE");
  }
  if (has_field(json, "dropout")) {
    const double dropout = json_number(json.at("dropout"), what + " dropout");
    require(dropout == 0, what, ": dropout must be null or 0, got ", dropout);
  }
  const Json& vocabulary = object_field(json, "vocab", what);
  require(vocabulary.is_object(), what, ": \"vocab\" must be an object, got ", vocabulary.type_name());
  // Ids index tables: a few holes are fine, a vocabulary of two tokens with an id of a thousand million is not.
  const auto limit = static_cast<int64_t>(4 * vocabulary.size() + (1 << 20));
  vocabulary_.reserve(vocabulary.size());
  std::vector<bool> taken;
  for (const auto& [token, id] : vocabulary.items()) {
    const bool plain = id.is_number_unsigned() && id.get<uint64_t>() <= static_cast<uint64_t>(limit);
    const int64_t value =
        plain ? id.get<int64_t>() : json_integer(id, concat(what, ": the id of ", quote(token)), 0, limit);
    const auto index = static_cast<size_t>(value);
    if (index >= taken.size()) taken.resize(index + 1);
    if (taken[index]) fail(concat(what, ": two tokens have the id ", value, ", one is ", quote(token)));
    taken[index] = true;
    vocabulary_.emplace(token, static_cast<TokenId>(value));
    longest_token_ = std::max(longest_token_, token.size());
  }
  fuse_unknown_ = bool_field(json, "fuse_unk", false, what);
  ignore_merges_ = bool_field(json, "ignore_merges", false, what);
  if (has_field(json, "continuing_subword_prefix")) prefix_ = string_field(json, "continuing_subword_prefix", what);
  if (has_field(json, "end_of_word_suffix")) suffix_ = string_field(json, "end_of_word_suffix", what);
  if (has_field(json, "unk_token")) {
    const std::string unknown = string_field(json, "unk_token", what);
    const auto found = vocabulary_.find(unknown);
    require(found != vocabulary_.end(), what, ": the unk_token ", quote(unknown), " is not in the vocabulary");
    unknown_ = found->second;
  }
  byte_token_.fill(-1);
  if (bool_field(json, "byte_fallback", false, what)) {
    for (int byte = 0; byte < 256; ++byte) {
      const auto found = vocabulary_.find(byte_token_name(byte));
      if (found != vocabulary_.end()) byte_token_[static_cast<size_t>(byte)] = found->second;
    }
  }
  read_merges(object_field(json, "merges", what), what);
  fill_units();
  can_cut_ = prefix_.empty() && suffix_.empty();
  cache_owner_ = next_cache_owner.fetch_add(2);
}

Bpe::Bpe(BpeParts parts)
    : vocabulary_(std::move(parts.vocabulary)),
      merges_(parts.merges.size()),
      spells_bytes_(false),
      fuse_unknown_(true),
      unknown_(parts.unknown),
      byte_token_(parts.byte_tokens),
      cache_owner_(next_cache_owner.fetch_add(2)),
      can_cut_(true) {
  for (const auto& [token, id] : vocabulary_) longest_token_ = std::max(longest_token_, token.size());
  for (const BpeParts::Merge& merge : parts.merges) {
    merges_.set(pair_key(static_cast<uint64_t>(merge.left), static_cast<uint64_t>(merge.right)),
                {merge.rank, merge.result});
    merge_results_.push_back(merge.result);
  }
  fill_units();
}

void Bpe::read_merges(const Json& merges, const std::string& what) {
  require(merges.is_array(), what, ": \"merges\" must be an array, got ", merges.type_name());
  merges_ = FlatMap<Merge>(merges.size());
  const auto id_of = [&](const std::string& token, size_t rank) {
    const auto found = vocabulary_.find(token);
    if (found == vocabulary_.end()) {
      fail(concat(what, ": merge ", rank, " needs the token ", quote(token), ", which is not in the vocabulary"));
    }
    return found->second;
  };
  size_t rank = 0;
  for (const Json& merge : merges) {
    std::string left, right;
    if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      if (text.starts_with("#version")) continue;
      const size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
        fail(concat(what, ": merge ", rank, " must be two tokens with a space between, got ", quote(text)));
      }
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else {
      require(merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string(), what, ": merge ",
              rank, " must be two tokens");
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    }
    const TokenId left_id = id_of(left, rank), right_id = id_of(right, rank);
    if (right.size() < prefix_.size()) {
      fail(concat(what, ": merge ", rank, " has ", quote(right),
                  " on its right, less than the continuing_subword_prefix"));
    }
    const TokenId result = id_of(left + right.substr(prefix_.size()), rank);
    merges_.set(pair_key(static_cast<uint64_t>(left_id), static_cast<uint64_t>(right_id)),
                {static_cast<int32_t>(rank), result});
    merge_results_.push_back(result);
    ++rank;
  }
}

Bpe::Unit Bpe::make_unit(const std::string& spelling) const {
  Unit unit;
  if (const auto found = vocabulary_.find(spelling); found != vocabulary_.end()) {
    unit.kind = Unit::token;
    unit.id = found->second;
    return unit;
  }
  for (const char byte : spelling) {
    const int64_t token = byte_token_[static_cast<unsigned char>(byte)];
    if (token < 0) return Unit{};
    unit.fallback.push_back(static_cast<TokenId>(token));
  }
  unit.kind = Unit::bytes;
  return unit;
}

void Bpe::fill_units() {
  if (spells_bytes_) {
    for (int byte = 0; byte < 256; ++byte) {
      const auto index = static_cast<size_t>(byte);
      byte_unit_[index] = make_unit(std::string(byte_spelling(static_cast<unsigned char>(byte))));
    }
  }
  for (const auto& [token, id] : vocabulary_) {
    if (token.empty()) continue;
    const unicode::Decoded first = unicode::decode(token.data());
    if (!spells_bytes_ && static_cast<size_t>(first.length) == token.size()) character_token_.set(first.code, id);
    if (!ignore_merges_) continue;
    if (!spells_bytes_) {
      whole_words_.emplace(token, id);
    } else if (const std::optional<std::string> bytes = spelled_bytes(token)) {
      whole_words_.emplace(*bytes, id);
    }
  }
}

void Bpe::fill_bigrams() const {
  std::vector<std::string_view> spelling;
  for (const auto& [token, id] : vocabulary_) {
    if (static_cast<size_t>(id) >= spelling.size()) spelling.resize(static_cast<size_t>(id) + 1);
    spelling[static_cast<size_t>(id)] = token;
  }
  for (const TokenId result : merge_results_) {
    const std::string_view token = spelling[static_cast<size_t>(result)];
    const std::optional<std::string> bytes = spells_bytes_ ? spelled_bytes(token) : std::nullopt;
    uint64_t previous = 0;
    for (size_t at = 0; at < token.size();) {
      const unicode::Decoded code = unicode::decode(token.data() + at);
      const uint64_t unit = bytes ? static_cast<uint64_t>(spelled_byte(code.code)) : code.code;
      if (at > 0) bigrams_.set(pair_key(previous, unit), true);
      previous = unit;
      at += static_cast<size_t>(code.length);
    }
  }
}

size_t Bpe::unit_length(std::string_view word, size_t at) const {
  return spells_bytes_ ? 1 : static_cast<size_t>(unicode::decode(word.data() + at).length);
}

Bpe::Unit Bpe::unit_at(std::string_view word, size_t at, size_t length) const {
  const std::string_view text = word.substr(at, length);
  const bool affixed = (at > 0 && !prefix_.empty()) || (at + length == word.size() && !suffix_.empty());
  if (!affixed) return spells_bytes_ ? byte_unit_[static_cast<unsigned char>(text[0])] : make_unit(std::string(text));
  const std::string spelled(spells_bytes_ ? byte_spelling(static_cast<unsigned char>(text[0])) : text);
  return make_unit((at > 0 ? prefix_ : "") + spelled + (at + length == word.size() ? suffix_ : ""));
}

void Bpe::append_symbols(std::string_view word, std::vector<TokenId>& symbols) const {
  const bool plain = prefix_.empty() && suffix_.empty();
  bool pending_unknown = false;
  for (size_t at = 0; at < word.size();) {
    const size_t length = unit_length(word, at);
    const TokenId* known = nullptr;
    if (plain && spells_bytes_) {
      const Unit& unit = byte_unit_[static_cast<unsigned char>(word[at])];
      if (unit.kind == Unit::token) known = &unit.id;
    } else if (plain) {
      known = character_token_.find(unicode::decode(word.data() + at).code);
    }
    const Unit unit = known != nullptr ? Unit{Unit::token, *known, {}} : unit_at(word, at, length);
    at += length;
    if (unit.kind == Unit::token) {
      if (pending_unknown) symbols.push_back(*unknown_);
      pending_unknown = false;
      symbols.push_back(unit.id);
    } else if (unit.kind == Unit::bytes) {
      // As in the reference, in front of an unknown character that is still pending.
      symbols.insert(symbols.end(), unit.fallback.begin(), unit.fallback.end());
    } else if (unknown_) {
      if (pending_unknown && !fuse_unknown_) symbols.push_back(*unknown_);
      pending_unknown = true;
    }
  }
  if (pending_unknown) symbols.push_back(*unknown_);
}

const Bpe::Merge* Bpe::merge_of(TokenId left, TokenId right) const {
  return merges_.find(pair_key(static_cast<uint64_t>(left), static_cast<uint64_t>(right)));
}

void Bpe::merge_short(std::vector<TokenId>& symbols) const {
  constexpr Merge kNone{std::numeric_limits<int32_t>::max(), 0};
  std::array<Merge, kShortWord> merges;  // of a symbol with the next one
  size_t count = symbols.size();
  const auto look_up = [&](size_t at) {
    const Merge* merge = at + 1 < count ? merge_of(symbols[at], symbols[at + 1]) : nullptr;
    merges[at] = merge != nullptr ? *merge : kNone;
  };
  for (size_t at = 0; at < count; ++at) look_up(at);
  while (count > 1) {
    const auto best = std::min_element(merges.begin(), merges.begin() + static_cast<int64_t>(count) - 1,
                                       [](const Merge& a, const Merge& b) { return a.rank < b.rank; });
    if (best->rank == kNone.rank) break;
    const auto at = static_cast<size_t>(best - merges.begin());
    symbols[at] = best->token;
    for (size_t to = at + 1; to + 1 < count; ++to) {
      symbols[to] = symbols[to + 1];
      merges[to] = merges[to + 1];
    }
    --count;
    look_up(at);
    if (at > 0) look_up(at - 1);
  }
  symbols.resize(count);
}

void Bpe::merge_long(std::vector<TokenId>& symbols) const {
  require(symbols.size() < static_cast<size_t>(std::numeric_limits<int32_t>::max()), "encode: a word may have ",
          std::numeric_limits<int32_t>::max(), " characters, got ", symbols.size());
  struct Candidate {
    int32_t rank;
    int32_t at;
    TokenId token;
    bool operator>(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };
  const auto count = static_cast<int32_t>(symbols.size());
  constexpr TokenId kGone = -1;
  std::vector<int32_t> next(symbols.size()), previous(symbols.size());
  std::vector<Candidate> initial;
  const auto symbol = [&](int32_t at) -> TokenId& { return symbols[static_cast<size_t>(at)]; };
  const auto next_of = [&](int32_t at) -> int32_t& { return next[static_cast<size_t>(at)]; };
  const auto previous_of = [&](int32_t at) -> int32_t& { return previous[static_cast<size_t>(at)]; };
  for (int32_t at = 0; at < count; ++at) {
    previous_of(at) = at - 1;
    next_of(at) = at + 1;
    if (at + 1 == count) break;
    if (const Merge* merge = merge_of(symbol(at), symbol(at + 1))) initial.push_back({merge->rank, at, merge->token});
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>{}, std::move(initial));
  const auto propose = [&](int32_t at) {
    if (at < 0 || next_of(at) >= count) return;
    if (const Merge* merge = merge_of(symbol(at), symbol(next_of(at)))) queue.push({merge->rank, at, merge->token});
  };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    if (symbol(top.at) == kGone || next_of(top.at) >= count) continue;
    const int32_t right = next_of(top.at);
    const Merge* merge = merge_of(symbol(top.at), symbol(right));
    if (merge == nullptr || merge->token != top.token) continue;  // one of the two has changed since
    symbol(top.at) = top.token;
    symbol(right) = kGone;
    next_of(top.at) = next_of(right);
    if (next_of(right) < count) previous_of(next_of(right)) = top.at;
    propose(previous_of(top.at));
    propose(top.at);
  }
  std::erase(symbols, kGone);
}

void Bpe::encode_uncached(std::string_view word, bool whole, std::vector<TokenId>& out) const {
  if (whole && ignore_merges_ && word.size() <= longest_token_) {
    if (const auto found = whole_words_.find(std::string(word)); found != whole_words_.end()) {
      out.push_back(found->second);
      return;
    }
  }
  thread_local std::vector<TokenId> symbols;
  symbols.clear();
  append_symbols(word, symbols);
  if (symbols.size() <= kShortWord) {
    merge_short(symbols);
  } else {
    merge_long(symbols);
  }
  out.insert(out.end(), symbols.begin(), symbols.end());
  if (symbols.capacity() > (size_t{1} << 16)) symbols = {};
}

void Bpe::encode_small(std::string_view word, bool whole, std::vector<TokenId>& out) const {
  using Entry = WordCache::Entry;
  if (word.size() > std::tuple_size_v<decltype(Entry::word)>) {
    encode_uncached(word, whole, out);
    return;
  }
  const uint32_t owner = cache_owner_ + (whole ? 0 : 1);
  Entry& entry = word_cache().entry(owner, word);
  if (entry.owner == owner && entry.length == word.size() &&
      std::memcmp(entry.word.data(), word.data(), word.size()) == 0) {
    out.insert(out.end(), entry.ids.begin(), entry.ids.begin() + entry.count);
    return;
  }
  const size_t before = out.size();
  encode_uncached(word, whole, out);
  const size_t count = out.size() - before;
  if (count > entry.ids.size()) return;
  entry.owner = owner;
  entry.length = static_cast<uint8_t>(word.size());
  entry.count = static_cast<uint8_t>(count);
  std::memcpy(entry.word.data(), word.data(), word.size());
  std::copy(out.begin() + static_cast<int64_t>(before), out.end(), entry.ids.begin());
}

// Calls cut(at) wherever no merge can join what is before and after: both units are tokens of their own and never
// neighbours in a token that a merge makes.
template <class Cut>
void Bpe::for_each_cut(std::string_view word, const Cut& cut) const {
  std::call_once(bigrams_once_, [this] { fill_bigrams(); });
  const auto is_token = [this](uint64_t unit) {
    return spells_bytes_ ? byte_unit_[unit].kind == Unit::token : character_token_.find(unit) != nullptr;
  };
  uint64_t previous = 0;
  for (size_t at = 0; at < word.size();) {
    const uint64_t unit = spells_bytes_ ? static_cast<unsigned char>(word[at]) : unicode::decode(word.data() + at).code;
    if (at > 0 && bigrams_.find(pair_key(previous, unit)) == nullptr && is_token(previous) && is_token(unit)) cut(at);
    previous = unit;
    at += unit_length(word, at);
  }
}

void Bpe::encode_part(std::string_view part, std::vector<TokenId>& out) const {
  size_t begin = 0;
  if (can_cut_ && part.size() > kLongWord) {
    for_each_cut(part, [&](size_t at) {
      encode_small(part.substr(begin, at - begin), false, out);
      begin = at;
    });
  }
  encode_small(part.substr(begin), false, out);
}

size_t Bpe::certain_part(std::string_view word) const {
  // A word that may yet be found as a whole must stay one.
  if (!can_cut_ || word.size() <= std::max(kLongWord, ignore_merges_ ? longest_token_ : 0)) return 0;
  size_t certain = 0;
  for_each_cut(word, [&](size_t at) { certain = at; });
  return certain;
}

void Bpe::encode(std::string_view word, std::vector<TokenId>& out) const {
  if (word.empty()) return;
  if (word.size() <= std::max(kLongWord, ignore_merges_ ? longest_token_ : 0)) {
    encode_small(word, true, out);
  } else {
    encode_part(word, out);
  }
}

void BpeStage::feed(std::string_view text, bool last) {
  if (held_.empty() && last && !in_parts_) {
    bpe_->encode(text, *output_->ids);
    return;
  }
  held_.append(text);
  if (last) {
    if (in_parts_) {
      if (!held_.empty()) bpe_->encode_part(held_, *output_->ids);
    } else {
      bpe_->encode(held_, *output_->ids);
    }
    held_.clear();
    look_again_ = 0;
    in_parts_ = false;
    return;
  }
  if (held_.size() < look_again_) return;
  const size_t certain = bpe_->certain_part(held_);
  if (certain > 0) {
    bpe_->encode_part(std::string_view(held_).substr(0, certain), *output_->ids);
    held_.erase(0, certain);
    in_parts_ = true;
  }
  look_again_ = 2 * held_.size();
}

}  // namespace elapid
