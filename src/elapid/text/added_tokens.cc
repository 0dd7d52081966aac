#include "elapid/text/added_tokens.h"

#include "elapid/core/error.h"
#include "elapid/io/json.h"
#include "elapid/text/unicode.h"

#include <algorithm>

namespace elapid {
namespace {

bool ends_with_word(std::string_view text) {
  return unicode::is_word(unicode::decode(text.data() + unicode::last_character(text)).code);
}

bool starts_with_word(std::string_view text) { return unicode::is_word(unicode::decode(text.data()).code); }

size_t skip_spaces(std::string_view text, size_t at) {
  while (at < text.size()) {
    const unicode::Decoded next = unicode::decode(text.data() + at);
    if (!unicode::is_space(next.code)) break;
    at += static_cast<size_t>(next.length);
  }
  return at;
}

// Where the white space that ends text[begin, end) begins.
size_t skip_spaces_back(std::string_view text, size_t begin, size_t end) {
  while (end > begin) {
    const size_t last = unicode::last_character(text.substr(0, end));
    if (!unicode::is_space(unicode::decode(text.data() + last).code)) break;
    end = last;
  }
  return end;
}

}  // namespace

void AddedTokenSet::add(const AddedToken& token, std::string_view pattern, const std::string& what) {
  require(!pattern.empty(), what, ": nothing is left of the added token ", quote(token.content),
          " once it is normalized");
  int32_t node = kRoot;
  for (const char byte : pattern) {
    const int32_t* child = children_.find(edge(node, byte));
    if (child != nullptr) {
      node = *child;
      continue;
    }
    const auto created = static_cast<int32_t>(token_at_.size());
    children_.set(edge(node, byte), created);
    inner_[static_cast<size_t>(node)] = true;
    token_at_.push_back(-1);
    inner_.push_back(false);
    node = created;
  }
  int32_t& slot = token_at_[static_cast<size_t>(node)];
  if (slot >= 0) {
    fail(concat(what, ": the added tokens ", quote((*this)[slot].content), " and ", quote(token.content),
                " are spelled alike"));
  }
  slot = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  first_byte_[static_cast<unsigned char>(pattern.front())] = true;
  any_lstrip_ = any_lstrip_ || token.lstrip;
}

AddedTokenSet::Match AddedTokenSet::find(std::string_view text, size_t from, bool last) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!first_byte_[static_cast<unsigned char>(text[begin])]) continue;
    Match match{Match::none, begin, begin, 0};
    int32_t node = kRoot;
    for (size_t at = begin;; ++at) {
      if (at == text.size()) {
        if (!last && inner_[static_cast<size_t>(node)]) return {Match::partial, begin, begin, 0};
        break;
      }
      const int32_t* child = children_.find(edge(node, text[at]));
      if (child == nullptr) break;
      node = *child;
      const int32_t token = token_at_[static_cast<size_t>(node)];
      if (token >= 0) match = {Match::found, begin, at + 1, token};
    }
    if (match.kind == Match::found) return match;
  }
  return {};
}

void AddedTokenStage::begin(Origin origin) {
  origin_ = origin;
  in_segment_ = piece_began_ = after_word_ = false;
  pending_ = search_ = 0;
}

void AddedTokenStage::emit(std::string_view text, bool ends) {
  if (!in_segment_) {
    if (text.empty()) return;
    next().begin(piece_began_ ? Origin::behind : origin_);
  } else if (text.empty() && !ends) {
    return;
  }
  next().feed(text, ends);
  in_segment_ = !ends;
  piece_began_ = true;
}

size_t AddedTokenStage::process(std::string_view text, bool last) {
  size_t pending = pending_, search = search_;
  for (;;) {
    const AddedTokenSet::Match match = tokens_->find(text, search, last);
    if (match.kind == AddedTokenSet::Match::none) {
      search = text.size();
      break;
    }
    const AddedToken& token = (*tokens_)[match.token];
    const bool touches_end = match.kind == AddedTokenSet::Match::found && match.end == text.size();
    size_t end = match.end;
    if (token.rstrip) end = skip_spaces(text, end);
    const bool undecided = match.kind == AddedTokenSet::Match::partial || (token.single_word && touches_end) ||
                           (token.rstrip && end == text.size());
    if (undecided && !last) {
      search = match.begin;
      break;
    }
    search = match.end;
    if (token.single_word) {
      const bool after_word = match.begin == 0 ? after_word_ : ends_with_word(text.substr(0, match.begin));
      if (after_word || (!touches_end && starts_with_word(text.substr(match.end)))) continue;
    }
    size_t begin = match.begin;
    if (token.lstrip) begin = skip_spaces_back(text, std::min(pending, begin), begin);
    emit(text.substr(std::min(pending, begin), begin - std::min(pending, begin)), true);
    output_->ids->push_back(token.id);
    piece_began_ = true;
    pending = end;
  }
  if (last) {
    emit(text.substr(pending), true);
    return text.size();
  }
  if (search > pending) {
    const size_t certain = tokens_->any_lstrip() ? skip_spaces_back(text, pending, search) : search;
    emit(text.substr(pending, certain - pending), false);
    pending = certain;
  }
  const size_t done = std::min(pending, search);
  if (done > 0) after_word_ = ends_with_word(text.substr(0, done));
  pending_ = pending - done;
  search_ = search - done;
  return done;
}

}  // namespace elapid
