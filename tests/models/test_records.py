import numpy as np
import pytest
import torch

from models.columns import PADDING, Tokens
from models.errors import NightjarError
from models.records import BLOCK, Records, iterate_blocks, make_records


def test_a_part_left_out_has_no_columns_but_as_many_rows() -> None:
    records = make_records(codes=np.array([[1], [2]]))
    assert len(records) == 2
    assert records.numbers.shape == (2, 0) and records.times.shape == (2, 0)


def test_read_only_arrays_are_taken_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    numbers = np.ones((3, 2))
    numbers.setflags(write=False)
    assert make_records(numbers).numbers.sum() == 6
    assert not recwarn.list


def test_rows_are_taken_by_slice_and_by_mask() -> None:
    records = make_records(np.arange(4.0)[:, None], np.arange(4)[:, None])
    assert records[1:3].numbers.flatten().tolist() == [1, 2]
    assert records[torch.tensor([True, False, False, True])].codes.flatten().tolist() == [0, 3]


def test_pixels_and_tokens_travel_with_the_rows_they_belong_to() -> None:
    pixels, tokens = np.arange(6, dtype=np.uint8).reshape(3, 2), np.array([[0], [1], [PADDING]])
    records = make_records(pixels=pixels, tokens=tokens)
    assert records.widths == (0, 0, 0, 2, 1, 0)
    assert records[1:].pixels.tolist() == [[2, 3], [4, 5]] and records[1:].tokens.tolist() == [[1], [PADDING]]
    [(rows, block)] = iterate_blocks(records)
    assert (rows, block.pixels.shape, block.tokens.shape) == (slice(0, 3), (BLOCK, 2), (BLOCK, 1))


def test_parts_of_different_lengths_are_refused() -> None:
    with pytest.raises(NightjarError, match="do not match"):
        make_records(np.ones((3, 1)), np.ones((2, 1), dtype=np.int64))


def test_parts_of_wrong_types_are_refused() -> None:
    with pytest.raises(NightjarError, match="wrong types"):
        Records(torch.ones(1, 1), *(torch.ones(1, 0, dtype=torch.int64) for _ in range(5)))


@pytest.mark.parametrize(("ngrams", "words"), [(1, 5), (2, 5), (3, 5), (4, 1), (2, 0)])
def test_a_record_has_room_for_all_its_runs_of_words_and_edges(ngrams: int, words: int) -> None:
    text = ["<", *(str(n) for n in range(words)), ">"]
    runs = [text[i : i + k] for k in range(2, ngrams + 1) for i in range(len(text) - k + 1)]
    assert Tokens(r"\s+", ngrams, words, "counts").length == words + len(runs)


@pytest.mark.parametrize("together", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_pieces_are_whole_blocks_and_cover_every_row_once(n: int, together: int) -> None:
    numbers = np.asfortranarray(np.arange(2.0 * n).reshape(n, 2))
    seen = []
    for rows, piece in iterate_blocks(make_records(numbers), together=together):
        assert len(piece) % BLOCK == 0 and 0 < len(piece) <= together * BLOCK
        assert piece.widths == (2, 0, 0, 0, 0, 0)
        real = rows.stop - rows.start
        assert len(piece) - real < BLOCK and not piece.numbers[real:].any()
        seen.append(piece.numbers[:real].numpy())
    assert np.array_equal(np.concatenate(seen) if seen else np.empty((0, 2)), numbers)
