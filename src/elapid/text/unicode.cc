#include "elapid/text/unicode.h"

#include "elapid/text/flat_map.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utf8proc.h>
#include <vector>

namespace elapid::unicode {
namespace {

struct Range {
  char32_t first, last;
};

template <size_t N>
bool contains(const std::array<Range, N>& ranges, char32_t code) {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), code,
                                      [](char32_t value, const Range& range) { return value < range.first; });
  return after != ranges.begin() && code <= std::prev(after)->last;
}

using enum Category;

// Assigned or changed in Unicode 15.0 to 16.0.
constexpr std::array<CategoryRange, 126> kNewerCategories = {
    {{0x897, 0x897, Mn},     {0xCF3, 0xCF3, Mc},     {0xECE, 0xECE, Mn},     {0x1B4E, 0x1B4F, Po},
     {0x1B7F, 0x1B7F, Po},   {0x1C89, 0x1C89, Lu},   {0x1C8A, 0x1C8A, Ll},   {0x2427, 0x2429, So},
     {0x2FFC, 0x2FFF, So},   {0x31E4, 0x31E5, So},   {0x31EF, 0x31EF, So},   {0xA7CB, 0xA7CC, Lu},
     {0xA7CD, 0xA7CD, Ll},   {0xA7DA, 0xA7DA, Lu},   {0xA7DB, 0xA7DB, Ll},   {0xA7DC, 0xA7DC, Lu},
     {0x105C0, 0x105F3, Lo}, {0x10D40, 0x10D49, Nd}, {0x10D4A, 0x10D4D, Lo}, {0x10D4E, 0x10D4E, Lm},
     {0x10D4F, 0x10D4F, Lo}, {0x10D50, 0x10D65, Lu}, {0x10D69, 0x10D6D, Mn}, {0x10D6E, 0x10D6E, Pd},
     {0x10D6F, 0x10D6F, Lm}, {0x10D70, 0x10D85, Ll}, {0x10D8E, 0x10D8F, Sm}, {0x10EC2, 0x10EC4, Lo},
     {0x10EFC, 0x10EFF, Mn}, {0x1123F, 0x11240, Lo}, {0x11241, 0x11241, Mn}, {0x11380, 0x11389, Lo},
     {0x1138B, 0x1138B, Lo}, {0x1138E, 0x1138E, Lo}, {0x11390, 0x113B5, Lo}, {0x113B7, 0x113B7, Lo},
     {0x113B8, 0x113BA, Mc}, {0x113BB, 0x113C0, Mn}, {0x113C2, 0x113C2, Mc}, {0x113C5, 0x113C5, Mc},
     {0x113C7, 0x113CA, Mc}, {0x113CC, 0x113CD, Mc}, {0x113CE, 0x113CE, Mn}, {0x113CF, 0x113CF, Mc},
     {0x113D0, 0x113D0, Mn}, {0x113D1, 0x113D1, Lo}, {0x113D2, 0x113D2, Mn}, {0x113D3, 0x113D3, Lo},
     {0x113D4, 0x113D5, Po}, {0x113D7, 0x113D8, Po}, {0x113E1, 0x113E2, Mn}, {0x116D0, 0x116E3, Nd},
     {0x1171E, 0x1171E, Mc}, {0x11B00, 0x11B09, Po}, {0x11BC0, 0x11BE0, Lo}, {0x11BE1, 0x11BE1, Po},
     {0x11BF0, 0x11BF9, Nd}, {0x11F00, 0x11F01, Mn}, {0x11F02, 0x11F02, Lo}, {0x11F03, 0x11F03, Mc},
     {0x11F04, 0x11F10, Lo}, {0x11F12, 0x11F33, Lo}, {0x11F34, 0x11F35, Mc}, {0x11F36, 0x11F3A, Mn},
     {0x11F3E, 0x11F3F, Mc}, {0x11F40, 0x11F40, Mn}, {0x11F41, 0x11F41, Mc}, {0x11F42, 0x11F42, Mn},
     {0x11F43, 0x11F4F, Po}, {0x11F50, 0x11F59, Nd}, {0x11F5A, 0x11F5A, Mn}, {0x1342F, 0x1342F, Lo},
     {0x13440, 0x13440, Mn}, {0x13441, 0x13446, Lo}, {0x13447, 0x13455, Mn}, {0x13460, 0x143FA, Lo},
     {0x16100, 0x1611D, Lo}, {0x1611E, 0x16129, Mn}, {0x1612A, 0x1612C, Mc}, {0x1612D, 0x1612F, Mn},
     {0x16130, 0x16139, Nd}, {0x16D40, 0x16D42, Lm}, {0x16D43, 0x16D6A, Lo}, {0x16D6B, 0x16D6C, Lm},
     {0x16D6D, 0x16D6F, Po}, {0x16D70, 0x16D79, Nd}, {0x18CFF, 0x18CFF, Lo}, {0x1B132, 0x1B132, Lo},
     {0x1B155, 0x1B155, Lo}, {0x1CC00, 0x1CCEF, So}, {0x1CCF0, 0x1CCF9, Nd}, {0x1CD00, 0x1CEB3, So},
     {0x1D2C0, 0x1D2D3, No}, {0x1DF25, 0x1DF2A, Ll}, {0x1E030, 0x1E06D, Lm}, {0x1E08F, 0x1E08F, Mn},
     {0x1E4D0, 0x1E4EA, Lo}, {0x1E4EB, 0x1E4EB, Lm}, {0x1E4EC, 0x1E4EF, Mn}, {0x1E4F0, 0x1E4F9, Nd},
     {0x1E5D0, 0x1E5ED, Lo}, {0x1E5EE, 0x1E5EF, Mn}, {0x1E5F0, 0x1E5F0, Lo}, {0x1E5F1, 0x1E5FA, Nd},
     {0x1E5FF, 0x1E5FF, Po}, {0x1F6DC, 0x1F6DC, So}, {0x1F774, 0x1F776, So}, {0x1F77B, 0x1F77F, So},
     {0x1F7D9, 0x1F7D9, So}, {0x1F8B2, 0x1F8BB, So}, {0x1F8C0, 0x1F8C1, So}, {0x1FA75, 0x1FA77, So},
     {0x1FA87, 0x1FA89, So}, {0x1FA8F, 0x1FA8F, So}, {0x1FAAD, 0x1FAAF, So}, {0x1FABB, 0x1FABF, So},
     {0x1FAC6, 0x1FAC6, So}, {0x1FACE, 0x1FACF, So}, {0x1FADA, 0x1FADC, So}, {0x1FADF, 0x1FADF, So},
     {0x1FAE8, 0x1FAE9, So}, {0x1FAF7, 0x1FAF8, So}, {0x1FBCB, 0x1FBEF, So}, {0x2B739, 0x2B739, Lo},
     {0x2EBF0, 0x2EE5D, Lo}, {0x31350, 0x323AF, Lo}}};

// Punctuation that is newer than Unicode 8.0.
constexpr auto kNewerPunctuation = std::to_array<Range>(
    {{0x61D, 0x61D},     {0x9FD, 0x9FD},     {0xA76, 0xA76},     {0xC77, 0xC77},     {0xC84, 0xC84},
     {0x1B7D, 0x1B7E},   {0x2E43, 0x2E4F},   {0x2E52, 0x2E5D},   {0x10EAD, 0x10EAD}, {0x10F55, 0x10F59},
     {0x10F86, 0x10F89}, {0x1144B, 0x1144F}, {0x1145A, 0x1145B}, {0x1145D, 0x1145D}, {0x11660, 0x1166C},
     {0x116B9, 0x116B9}, {0x1183B, 0x1183B}, {0x11944, 0x11946}, {0x119E2, 0x119E2}, {0x11A3F, 0x11A46},
     {0x11A9A, 0x11A9C}, {0x11A9E, 0x11AA2}, {0x11B00, 0x11B09}, {0x11C41, 0x11C45}, {0x11C70, 0x11C71},
     {0x11EF7, 0x11EF8}, {0x11F43, 0x11F4F}, {0x11FFF, 0x11FFF}, {0x12FF1, 0x12FF2}, {0x16E97, 0x16E9A},
     {0x16FE2, 0x16FE2}, {0x1E95E, 0x1E95F}});

// Characters with a combining class or a decomposition that the package's normalizers do not know: newer than
// Unicode 9.0.
constexpr auto kUnknownToNormalizers = std::to_array<Range>(
    {{0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
     {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},
     {0x32FF, 0x32FF},   {0xA7F2, 0xA7F4},   {0xA82C, 0xA82C},   {0xAB69, 0xAB69},   {0x10781, 0x10785},
     {0x10787, 0x107B0}, {0x107B2, 0x107BA}, {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF},
     {0x10F46, 0x10F50}, {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E},
     {0x11839, 0x1183A}, {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943},
     {0x119E0, 0x119E0}, {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
     {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E030, 0x1E06D},
     {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF},
     {0x1F16C, 0x1F16C}, {0x1FBF0, 0x1FBF9}});

// Letters of other categories than L and Nl: circled and squared ones.
constexpr auto kOtherAlphabetic =
    std::to_array<Range>({{0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}});

// --- Normal forms

constexpr char32_t kTable = 0x33000;  // no character beyond has a decomposition or a combining class

constexpr char32_t kHangulL = 0x1100, kHangulV = 0x1161, kHangulT = 0x11A7, kHangulS = 0xAC00;
constexpr char32_t kHangulVCount = 21, kHangulTCount = 28, kHangulSCount = 11172, kHangulLCount = 19;

bool unknown_to_normalizers(char32_t code) { return code >= 0x7FD && contains(kUnknownToNormalizers, code); }

int combining_class(char32_t code) {
  return unknown_to_normalizers(code) ? 0 : utf8proc_get_property(static_cast<int32_t>(code))->combining_class;
}

void append_decomposition(bool compatibility, char32_t code, std::vector<char32_t>& out) {
  if (code < 0xA0 || unknown_to_normalizers(code)) {
    out.push_back(code);
    return;
  }
  std::array<int32_t, 32> parts;  // the longest decomposition has 18
  int boundary = 0;
  const int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatibility ? UTF8PROC_COMPAT : 0);
  const auto count = utf8proc_decompose_char(static_cast<int32_t>(code), parts.data(), std::ssize(parts),
                                             static_cast<utf8proc_option_t>(options), &boundary);
  for (int64_t i = 0; i < count; ++i) out.push_back(static_cast<char32_t>(parts[static_cast<size_t>(i)]));
}

uint64_t pair_key(char32_t first, char32_t second) { return static_cast<uint64_t>(first) << 32 | second; }

// utf8proc composes only whole strings, and sorts marks in quadratic time, so composition is done here from the pairs
// that its decompositions imply: if C decomposes to a, b, …, y, z then C is the pair (composition of a … y, z).
class Compositions {
 public:
  static const Compositions& instance() {
    static const Compositions compositions;
    return compositions;
  }

  // 0 when the two do not compose.
  [[nodiscard]] char32_t compose(char32_t first, char32_t second) const {
    if (first - kHangulL < kHangulLCount && second - kHangulV < kHangulVCount) {
      return kHangulS + ((first - kHangulL) * kHangulVCount + (second - kHangulV)) * kHangulTCount;
    }
    if (first - kHangulS < kHangulSCount && (first - kHangulS) % kHangulTCount == 0 &&
        second - kHangulT - 1 < kHangulTCount - 1) {
      return first + (second - kHangulT);
    }
    const char32_t* found = pairs_.find(pair_key(first, second));
    return found != nullptr ? *found : 0;
  }

  [[nodiscard]] bool is_second(char32_t code) const {
    return code - kHangulV < kHangulVCount || code - kHangulT - 1 < kHangulTCount - 1 || seconds_.find(code) != nullptr;
  }

 private:
  Compositions() {
    // Those of two characters first: longer ones are made of them.
    std::vector<char32_t> parts;
    for (const bool pairs_only : {true, false}) {
      for (char32_t code = 0xC0; code < kTable; ++code) {
        const utf8proc_property_t* property = utf8proc_get_property(static_cast<int32_t>(code));
        if (property->decomp_type != 0 || property->decomp_seqindex == UINT16_MAX || property->comp_exclusion) continue;
        if (property->combining_class != 0 || unknown_to_normalizers(code)) continue;
        parts.clear();
        append_decomposition(false, code, parts);
        if (parts.size() < 2 || (parts.size() == 2) != pairs_only) continue;
        char32_t first = parts.front();
        for (size_t i = 1; i + 1 < parts.size() && first != 0; ++i) first = compose(first, parts[i]);
        if (first == 0 || combining_class(first) != 0) continue;
        // A later character with the same decomposition is one whose canonical form is the earlier: Angstrom sign, A
        // ring.
        if (pairs_.find(pair_key(first, parts.back())) != nullptr) continue;
        pairs_.set(pair_key(first, parts.back()), code);
        seconds_.set(parts.back(), true);
      }
    }
  }

  FlatMap<char32_t> pairs_;
  FlatMap<bool> seconds_;
};

struct Mark {
  char32_t code;
  int combining_class;
};

void sort_marks(std::vector<Mark>& text) {
  for (auto begin = text.begin(); begin != text.end();) {
    if (begin->combining_class == 0) {
      ++begin;
      continue;
    }
    const auto end = std::find_if(begin, text.end(), [](const Mark& mark) { return mark.combining_class == 0; });
    std::stable_sort(begin, end, [](const Mark& a, const Mark& b) { return a.combining_class < b.combining_class; });
    begin = end;
  }
}

void compose_in_place(std::vector<Mark>& text) {
  const Compositions& compositions = Compositions::instance();
  constexpr size_t kNone = ~size_t{0};
  size_t starter = kNone, kept = 0;
  int blocking = 0;  // combining class of the last mark kept after the starter
  for (const Mark mark : text) {
    if (starter != kNone) {
      const bool adjacent = kept == starter + 1;
      const bool blocked = !adjacent && (blocking == 0 || blocking >= mark.combining_class);
      const char32_t composed = blocked ? 0 : compositions.compose(text[starter].code, mark.code);
      if (composed != 0) {
        text[starter].code = composed;
        continue;
      }
    }
    if (mark.combining_class == 0) starter = kept;
    blocking = mark.combining_class;
    text[kept++] = mark;
  }
  text.resize(kept);
}

std::u32string normal_form(NormalForm form, std::u32string_view text) {
  const bool compatibility = form == NormalForm::nfkc || form == NormalForm::nfkd;
  std::vector<char32_t> decomposed;
  for (const char32_t code : text) append_decomposition(compatibility, code, decomposed);
  std::vector<Mark> marks;
  marks.reserve(decomposed.size());
  for (const char32_t code : decomposed) marks.push_back({code, combining_class(code)});
  sort_marks(marks);
  if (form == NormalForm::nfc || form == NormalForm::nfkc) compose_in_place(marks);
  std::u32string result;
  result.reserve(marks.size());
  for (const Mark& mark : marks) result.push_back(mark.code);
  return result;
}

bool compute_stable(NormalForm form, char32_t code) {
  if (code < 0xA0) return true;
  if (unknown_to_normalizers(code)) return true;
  if (combining_class(code) != 0) return false;
  const bool composes = form == NormalForm::nfc || form == NormalForm::nfkc;
  if (composes && Compositions::instance().is_second(code)) return false;
  return normal_form(form, std::u32string_view(&code, 1)) == std::u32string_view(&code, 1);
}

// One bit a form for every code point.
class StableTable {
 public:
  static const StableTable& instance() {
    static const StableTable table;
    return table;
  }
  [[nodiscard]] bool operator()(NormalForm form, char32_t code) const {
    return code >= kTable || (bits_[code] >> static_cast<int>(form) & 1) != 0;
  }

 private:
  StableTable() : bits_(kTable, 0xF) {
    for (char32_t code = 0xA0; code < kTable; ++code) {
      const utf8proc_property_t* property = utf8proc_get_property(static_cast<int32_t>(code));
      const bool hangul = code - kHangulL < 0x100 || code - kHangulS < kHangulSCount;
      const bool plain = property->combining_class == 0 && property->decomp_seqindex == UINT16_MAX && !hangul;
      for (const NormalForm form : {NormalForm::nfc, NormalForm::nfd, NormalForm::nfkc, NormalForm::nfkd}) {
        const bool composes = form == NormalForm::nfc || form == NormalForm::nfkc;
        const bool stable = plain ? !composes || !Compositions::instance().is_second(code) : compute_stable(form, code);
        if (!stable) bits_[code] = static_cast<uint8_t>(bits_[code] & ~(1 << static_cast<int>(form)));
      }
    }
  }
  std::vector<uint8_t> bits_;
};

}  // namespace

Utf8Step utf8_step(std::string_view bytes) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  if (bytes.empty()) return {Utf8Step::incomplete, 0};
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {Utf8Step::valid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Step::invalid, 1};
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and what is beyond U+10FFFF.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) == bytes.size()) return {Utf8Step::incomplete, i};
    const unsigned char next = byte(static_cast<size_t>(i));
    if (next < (i == 1 ? low : 0x80) || next > (i == 1 ? high : 0xBF)) return {Utf8Step::invalid, i};
  }
  return {Utf8Step::valid, length};
}

size_t valid_utf8_prefix(std::string_view bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    uint64_t eight = 0;
    if (at + 8 <= bytes.size()) {
      std::memcpy(&eight, bytes.data() + at, 8);
      if ((eight & 0x8080808080808080u) == 0) {
        at += 8;
        continue;
      }
    }
    const Utf8Step step = utf8_step(bytes.substr(at));
    if (step.kind != Utf8Step::valid) break;
    at += static_cast<size_t>(step.length);
  }
  return at;
}

void append(std::string& text, char32_t code) {
  const auto put = [&text](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

void LossyDecoder::push(std::string_view bytes, std::string& out) {
  std::string joined;
  if (!held_.empty()) {
    joined = std::move(held_);
    joined.append(bytes);
    bytes = joined;
    held_.clear();
  }
  while (!bytes.empty()) {
    const size_t valid = valid_utf8_prefix(bytes);
    out.append(bytes.substr(0, valid));
    bytes.remove_prefix(valid);
    if (bytes.empty()) return;
    const Utf8Step step = utf8_step(bytes);
    if (step.kind == Utf8Step::incomplete) {
      held_.assign(bytes);
      return;
    }
    out.append(kReplacement);
    bytes.remove_prefix(static_cast<size_t>(step.length));
  }
}

void LossyDecoder::finish(std::string& out) {
  if (!held_.empty()) out.append(kReplacement);
  held_.clear();
}

Category category(char32_t code) {
  const auto known = static_cast<Category>(utf8proc_category(static_cast<int32_t>(code)));
  if (known != Category::Cn && code != 0x1171E) return known;
  const auto after = std::upper_bound(kNewerCategories.begin(), kNewerCategories.end(), code,
                                      [](char32_t value, const CategoryRange& range) { return value < range.first; });
  if (after == kNewerCategories.begin() || code > std::prev(after)->last) return known;
  return std::prev(after)->category;
}

namespace {
constexpr std::string_view kCategoryNames = "CnLuLlLtLmLoMnMcMeNdNlNoPcPdPsPePiPfPoSmScSkSoZsZlZpCcCfCsCo";
}  // namespace

bool in_class(Category category, std::string_view name) {
  return kCategoryNames.substr(2 * static_cast<size_t>(category), name.size()) == name;
}

bool is_class_name(std::string_view name) {
  if (name.empty() || name.size() > 2) return false;
  for (size_t i = 0; i < kCategoryNames.size(); i += 2) {
    if (kCategoryNames.substr(i, name.size()) == name) return true;
  }
  return false;
}

std::span<const CategoryRange> newer_categories() { return kNewerCategories; }

bool is_space(char32_t code) {
  if (code < 0x80) return code == ' ' || (code >= 9 && code <= 13);
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_alphanumeric(char32_t code) {
  switch (category(code)) {
    case Lu:
    case Ll:
    case Lt:
    case Lm:
    case Lo:
    case Mn:
    case Mc:
    case Me:
    case Nd:
    case Nl:
    case Pc: return true;
    default: return contains(kOtherAlphabetic, code);
  }
}

bool is_word(char32_t code) { return is_alphanumeric(code) || code == 0x200C || code == 0x200D; }

bool is_numeric(char32_t code) {
  const Category found = category(code);
  return found == Nd || found == Nl || found == No || (code >= 0x11DE0 && code <= 0x11DE9) ||
         (code >= 0x16FF4 && code <= 0x16FF6);
}

bool is_punctuation(char32_t code) {
  if (code < 0x80)
    return (code > ' ' && code < '0') || (code > '9' && code < 'A') || (code > 'Z' && code < 'a') ||
           (code > 'z' && code < 0x7F);
  if (code == 0x166D || code == 0x111C9) return true;  // were punctuation then
  const auto known = static_cast<Category>(utf8proc_category(static_cast<int32_t>(code)));
  return in_class(known, "P") && !contains(kNewerPunctuation, code);
}

const Gpt2Classes& Gpt2Classes::instance() {
  static const auto classes = std::unique_ptr<const Gpt2Classes>(new Gpt2Classes);
  return *classes;
}

Gpt2Classes::Gpt2Classes() {
  for (char32_t code = 0; code < kTable; ++code) {
    const Category found = category(code);
    table_[code] = in_class(found, "L")   ? Gpt2Class::letter
                   : in_class(found, "N") ? Gpt2Class::number
                   : is_space(code)       ? Gpt2Class::space
                                          : Gpt2Class::other;
  }
}

void append_lower(std::string& text, char32_t code) {
  if (code < 0x80) {
    text.push_back(static_cast<char>(code >= 'A' && code <= 'Z' ? code + 32 : code));
    return;
  }
  switch (code) {  // newer than utf8proc's data, except the first, which has two
    case 0x130: text.append("i\xCC\x87"); return;
    case 0x1C89:
    case 0xA7CC:
    case 0xA7CE:
    case 0xA7D2:
    case 0xA7D4:
    case 0xA7DA: append(text, code + 1); return;
    case 0xA7CB: append(text, 0x264); return;
    case 0xA7DC: append(text, 0x19B); return;
    default: break;
  }
  if (code >= 0x10D50 && code <= 0x10D65) {
    append(text, code + 0x20);
  } else if (code >= 0x16EA0 && code <= 0x16EB8) {
    append(text, code + 0x1B);
  } else {
    append(text, static_cast<char32_t>(utf8proc_tolower(static_cast<int32_t>(code))));
  }
}

bool is_stable(NormalForm form, char32_t code) {
  // Latin-1 and its extensions are their own composed forms; the compatibility forms change some of them.
  if (code < (form == NormalForm::nfc ? 0x300u : 0xA0u)) return true;
  return StableTable::instance()(form, code);
}

void append_normalized(NormalForm form, std::string_view text, std::string& out) {
  std::u32string codes;
  for (size_t at = 0; at < text.size();) {
    const Decoded next = decode(text.data() + at);
    codes.push_back(next.code);
    at += static_cast<size_t>(next.length);
  }
  for (const char32_t code : normal_form(form, codes)) append(out, code);
}

}  // namespace elapid::unicode
