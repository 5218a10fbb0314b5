"""The byte-level BPE tokenizer of the stack."""

import json
import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import VOCAB, documents, small_tokenizer
from tokenizers import Tokenizer as Library

from ltg_mdlm.core.errors import UserError
from ltg_mdlm.data.boundaries import cut
from ltg_mdlm.data.tokenizer import MASK, NUM_SPECIAL, SPECIAL_TOKENS, Tokenizer


def pieces(text: str) -> list[str]:
    """The parts of a text that are encoded independently, as text."""
    backend = small_tokenizer().backend
    parts = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
    return [backend.decoder.decode(["Ġx", part]).removeprefix("x") for part, _ in parts]


def test_the_first_sixteen_ids_are_special():
    vocabulary = small_tokenizer().vocabulary
    names = ["<unk>", "<s>", "</s>", "<pad>", "<mask>"] + [f"<special_{i}>" for i in range(11)]
    assert vocabulary[:16] == names == list(SPECIAL_TOKENS)
    assert len(set(vocabulary)) == small_tokenizer().vocab_size == VOCAB


def test_text_is_split_as_the_regex_of_the_stack_says():
    """Derived by hand: single digits, punctuation joined with the line break after it, ..."""
    assert pieces("don't McDonald 123 (a).\nb\t\tc  d") == [
        *[" don", "'t", " Mc", "Donald", " 1", "2", "3", " (", "a", ").\n", " b", "\t", "\tc", " ", " d"]
    ]
    assert pieces("a  \n\n b") == [" a", "\n\n", " ", " b"]
    assert pieces("x" * 50) == [" " + "x" * 23, "x" * 24, "x" * 3]
    assert pieces("ﬁ…Ⅻ") == [" fi", "...", "XII"]  # NFKC


@given(st.text(st.sampled_from("ab é字😀.,1\t\u0301ﬁ") | st.characters(codec="utf-8"), max_size=60))
def test_decoding_gives_back_the_normalised_text(text):
    tokenizer = small_tokenizer()
    text = unicodedata.normalize("NFKC", text.replace("\n", ""))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decoding_keeps_line_breaks_but_not_the_spaces_before_them():
    tokenizer = small_tokenizer()
    assert tokenizer.decode(tokenizer.encode("one  \n two\n\nthree")) == "one\n two\n\nthree"


def test_the_template_of_the_file_puts_s_before_every_text():
    backend = small_tokenizer().backend
    assert backend.encode("the", "the").tokens == ["<s>", "Ġthe", "<s>", "Ġthe"]


def test_special_tokens_written_in_a_text_are_ordinary_text():
    ids = small_tokenizer().encode("a <mask> b</s><s> <special_3>")
    assert min(ids) >= NUM_SPECIAL
    assert small_tokenizer().decode(ids) == "a <mask> b</s><s> <special_3>"


def test_training_does_not_depend_on_the_order_of_the_texts():
    texts = documents(300, seed=4)
    first = Tokenizer.train(texts, 600)
    assert Tokenizer.train(random.Random(1).sample(texts, len(texts)), 600).definition == first.definition


def test_training_on_parts_of_a_text_learns_the_merges_of_the_whole():
    texts = [*documents(150, seed=2), "´a  b\n\n c \t\nd", "x" * 60, "naïve ﬁ 字字", "a.\n/b"]
    parts = [part for text in texts for part in cut(text, 15)]
    assert len(parts) > 2 * len(texts)
    assert Tokenizer.train(parts, 330).definition == Tokenizer.train(texts, 330).definition


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(UserError, match="vocabulary of 271: must be at least 272"):
        Tokenizer.train(["a"], 271)
    assert Tokenizer.train(["abc abc"], 272).vocab_size == 272


def test_special_tokens_that_a_file_does_not_list_are_added(tmp_path):
    """Some published files do not list them; the library alone splits `<mask>` into characters."""
    definition = {**small_tokenizer().definition, "added_tokens": []}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(definition))
    restored = Tokenizer.read(path)
    assert restored.definition == small_tokenizer().definition
    assert restored.fingerprint == small_tokenizer().fingerprint
    saved = tmp_path / "saved.json"
    restored.save(saved)
    assert len(Library.from_file(str(path)).encode("<mask>").ids) > 3
    assert Library.from_file(str(saved)).encode("<mask>").ids[-1] == MASK


def test_the_fingerprint_depends_on_what_determines_the_tokens_and_nothing_else():
    definition = small_tokenizer().definition
    model = definition["model"]
    same = {**definition, "model": {**model, "merges": [" ".join(pair) for pair in model["merges"]]}}
    other = {**definition, "model": {**model, "merges": model["merges"][1:]}}
    cased = {**definition, "normalizer": {"type": "Lowercase"}}
    fingerprints = [Tokenizer(d).fingerprint for d in (definition, same, other, cased)]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 3


def test_only_tokenizers_that_split_text_as_the_stack_does_cut_at_spaces():
    definition = small_tokenizer().definition
    extra = {**definition["added_tokens"][0], "id": VOCAB, "content": "catdog", "special": False}
    others = [
        {**definition, "normalizer": {"type": "NFC"}},
        {**definition, "pre_tokenizer": {**definition["pre_tokenizer"]["pretokenizers"][1], "use_regex": True}},
        {**definition, "added_tokens": [*definition["added_tokens"], extra]},
        {**definition, "model": {**definition["model"], "dropout": 0.1}},
    ]
    assert small_tokenizer().cuts_at_spaces
    assert [Tokenizer(other).cuts_at_spaces for other in others] == [False] * 4


def without(token: str) -> dict:
    definition = json.loads(json.dumps(small_tokenizer().definition))
    del definition["model"]["vocab"][token]
    definition["added_tokens"] = [added for added in definition["added_tokens"] if added["content"] != token]
    return definition


def with_id(last: int) -> dict:
    definition = json.loads(json.dumps(small_tokenizer().definition))
    definition["model"]["vocab"][small_tokenizer().vocabulary[-1]] = last
    return definition


def with_vocabulary(*tokens: str, merges: tuple = ()) -> dict:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *tokens])}
    return {"model": {"type": "BPE", "vocab": vocabulary, "merges": list(merges)}}


BAD_FILES = {
    "no mask": (lambda: without("<mask>"), r"<mask> is missing, but must have id 4"),
    "a gap": (lambda: with_id(VOCAB + 1), f"the ids are not 0 to {VOCAB - 1} without a gap"),
    "no vocabulary": (lambda: {"model": {}}, "not a tokenizer file: it has no BPE vocabulary"),
    "a list": (list, "not a tokenizer file: it has no BPE vocabulary"),
    "word pieces": (
        lambda: {"model": {"type": "WordPiece", "vocab": {"<mask>": 4}}},
        "a WordPiece tokenizer; must be a byte-level BPE",
    ),
    "bad merges": (lambda: with_vocabulary(merges=(["a", "b"],)), "not a tokenizer file: "),
    "other bytes": (
        lambda: with_vocabulary("▁a"),
        "not a byte-level tokenizer: '▁' in its vocabulary stands for no byte",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_the_error_for_an_unusable_file_names_it(tmp_path, case):
    make, message = BAD_FILES[case]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(make()))
    with pytest.raises(UserError, match=f"tokenizer.json: {message}"):
        Tokenizer.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file"), (b"vocab: 5", "not JSON"), (b"\xff\xfe", "not JSON")],
)
def test_a_missing_file_and_one_that_is_not_json_are_refused(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Tokenizer.read(path)


def test_token_texts_are_readable_and_mark_where_words_begin():
    tokenizer = small_tokenizer()
    tokens, opens = tokenizer.tokens, tokenizer.token_text.opens_word_V
    assert tokens[:5] == ["<unk>", "<s>", "</s>", "<pad>", "<mask>"]
    for text, begins in ((" the", True), ("\n", False), ("e", False), (" ", False), ("<mask>", False)):
        assert opens[tokens.index(text)] == begins
    assert [opens[i] for i in tokenizer.encode("the dogs\nran")] == [
        tokens[i].startswith(" ") for i in tokenizer.encode("the dogs\nran")
    ]


def plus(*contents: str, **flags: bool) -> dict:
    """The small tokenizer with added tokens behind its vocabulary."""
    definition = json.loads(json.dumps(small_tokenizer().definition))
    usual = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False, **flags}
    definition["added_tokens"] += [{"id": VOCAB + i, "content": text, **usual} for i, text in enumerate(contents)]
    return definition


@pytest.mark.parametrize(
    "state",
    [
        {"truncation": {"direction": "Left", "max_length": 4, "strategy": "LongestFirst", "stride": 0}},
        {
            "padding": {"strategy": {"Fixed": 99}, "direction": "Left", "pad_to_multiple_of": None}
            | {"pad_id": 3, "pad_type_id": 0, "pad_token": "<pad>"}
        },
        {"model": {**small_tokenizer().definition["model"], "dropout": 0.9}},
    ],
    ids=["truncation", "padding", "dropout"],
)
def test_state_that_another_program_saved_in_the_file_changes_no_tokens(state):
    text = documents(1, seed=7)[0] * 3
    tokenizer = Tokenizer({**small_tokenizer().definition, **state})
    for _ in range(3):
        assert tokenizer.encode(text) == small_tokenizer().encode(text)
        (batch,) = tokenizer.backend.encode_batch([text], add_special_tokens=False)
        assert batch.ids == small_tokenizer().encode(text)
    assert tokenizer.fingerprint == small_tokenizer().fingerprint
    assert tokenizer.definition == small_tokenizer().definition
    assert bool(tokenizer.dropout) == ("model" in state)


@given(
    st.lists(st.sampled_from(["[CHI]", "\t", " ", "你好", "😀", "New dog", "\n", "a"]), unique=True, min_size=1),
    st.fixed_dictionaries({flag: st.booleans() for flag in ("special", "lstrip", "normalized", "single_word")}),
    st.lists(st.sampled_from(["[CHI]", "\t", " ", "你好", "😀", "New dog", "a", "the cats", "字", "\n"]), min_size=1),
)
def test_added_tokens_are_encoded_as_the_library_does_and_are_their_own_text(added, flags, parts):
    definition, text = plus(*added, **flags), "".join(parts)
    tokenizer = Tokenizer(definition)
    assert tokenizer.encode(text) == Library.from_str(json.dumps(definition)).encode(text, add_special_tokens=False).ids
    assert tokenizer.definition == definition
    for content in added:
        i = tokenizer.vocabulary.index(content)
        assert tokenizer.token_text.bytes_V[i] == content.encode()
        assert tokenizer.tokens[i] == content


@pytest.mark.parametrize("content", ["é", "Ġthe"])
def test_an_added_token_with_two_meanings_is_refused_by_name(content):
    with pytest.raises(UserError, match=f"the added token '{content}' is also a sequence of bytes; remove it"):
        Tokenizer(plus(content), origin="t.json")


def test_the_flags_of_added_tokens_are_part_of_the_fingerprint():
    plain, stripping, special = (Tokenizer(plus("[CHI]", **f)) for f in ({}, {"lstrip": True}, {"special": True}))
    assert len({plain.fingerprint, stripping.fingerprint, special.fingerprint}) == 3
    assert plain.fingerprint == stripping.earlier_fingerprint == special.earlier_fingerprint
    assert small_tokenizer().fingerprint == small_tokenizer().earlier_fingerprint


def with_names(*names: str) -> dict:
    """The small tokenizer with other names for its first special tokens."""
    text = json.dumps(small_tokenizer().definition)
    for old, new in zip(SPECIAL_TOKENS, names, strict=False):
        text = text.replace(f'"{old}"', f'"{new}"')
    return json.loads(text)


@pytest.mark.parametrize(
    "names",
    [
        ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"),
        ("[UNK]", "[BOS]", "[EOS]", "[PAD]", "[MASK]", *(f"[unused{i}]" for i in range(11))),
        ("<unk>", "<s>", "</s>", "[PAD]", "<mask>"),
    ],
)
def test_special_tokens_with_the_same_roles_get_the_names_of_the_stack(names):
    tokenizer = Tokenizer(with_names(*names))
    assert tokenizer.definition == small_tokenizer().definition
    assert tokenizer.fingerprint == small_tokenizer().fingerprint
    assert min(tokenizer.encode("a [MASK] <mask>")) >= NUM_SPECIAL


@pytest.mark.parametrize("names", [("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), ("[UNK]", "[CLS]", "x", "y", "z")])
def test_special_tokens_with_other_roles_are_listed(names):
    with pytest.raises(UserError, match=r"<unk> is missing, but must have id 0") as caught:
        Tokenizer(with_names(*names), origin="t.json")
    assert f"ids 0 to 15 are: {' '.join(names)} <special_0>" in str(caught.value)
    assert "otherwise train a tokenizer: `ltg-mdlm prepare` without --tokenizer" in str(caught.value)


def test_a_byte_order_mark_before_a_tokenizer_file_is_skipped(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(small_tokenizer().to_json(), "utf-8-sig")
    assert Tokenizer.read(path).definition == small_tokenizer().definition
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="not JSON"):
        Tokenizer.read(path)


@pytest.mark.parametrize(
    ("model", "parts", "message"),
    [
        ({"end_of_word_suffix": "</w>"}, {}, "end_of_word_suffix is '</w>', but must not be set"),
        ({"continuing_subword_prefix": "##"}, {}, "continuing_subword_prefix is '##', but must not be set"),
        ({}, {"pre_tokenizer": {"type": "Whitespace"}}, "neither its normalizer nor its pre_tokenizer converts"),
    ],
)
def test_a_file_whose_tokens_are_not_bytes_of_the_text_is_refused(model, parts, message):
    definition = small_tokenizer().definition
    with pytest.raises(UserError, match=message):
        Tokenizer({**definition, "model": {**definition["model"], "merges": [], **model}, **parts})
