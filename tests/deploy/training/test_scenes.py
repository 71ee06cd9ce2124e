"""Drawn scenes hold what they mean, and the judge sees it."""

from __future__ import annotations

import torch

from deploy.training import scenes
from deploy.training.judge import UNCLEAR, judge
from deploy.training.vae import to_frames


def test_the_judge_sees_what_is_drawn_whatever_is_left_open() -> None:
    generator = torch.Generator().manual_seed(7)
    for index, meaning in enumerate(scenes.MEANINGS):
        pixels, _ = scenes.draw(scenes.random_scenes(3, [index], generator))
        assert [judge(frames) for frames in to_frames(pixels)] == [meaning] * 3


def test_a_shape_is_seen_whole_in_every_frame() -> None:
    generator = torch.Generator().manual_seed(8)
    pixels, cover = scenes.draw(scenes.random_scenes(500, range(len(scenes.MEANINGS)), generator))
    assert pixels.shape == (500, 3, scenes.FRAMES, scenes.SIZE, scenes.SIZE)
    assert pixels.abs().max() <= 1
    assert not any(
        edge.any() for edge in (cover[..., 0], cover[..., -1], cover[..., 0, :], cover[..., -1, :])
    )
    assert cover.sum((3, 4)).min() > 100


def test_frames_from_the_middle_are_those_of_the_whole_clip() -> None:
    drawn = scenes.random_scenes(4, scenes.TRAINING, torch.Generator().manual_seed(9))
    assert torch.equal(scenes.draw(drawn, 6, 5)[0], scenes.draw(drawn)[0][:, :, 6:11])


def test_training_shows_every_pair_of_properties_and_no_held_out_combination() -> None:
    assert len(scenes.TRAINING) == 120
    assert not set(scenes.TRAINING) & set(scenes.HELD_OUT)
    drawn = scenes.random_scenes(1000, scenes.TRAINING, torch.Generator().manual_seed(10))
    assert set(drawn.meaning.tolist()) <= set(scenes.TRAINING)
    shown = [scenes.MEANINGS[index] for index in scenes.TRAINING]
    for first in range(4):
        for second in range(first):
            pairs = {(meaning[first], meaning[second]) for meaning in shown}
            assert pairs == {(meaning[first], meaning[second]) for meaning in scenes.MEANINGS}


def test_the_judge_is_not_sure_of_an_empty_or_a_fading_scene() -> None:
    pixels, _ = scenes.draw(scenes.random_scenes(1, [0], torch.Generator().manual_seed(11)))
    frames = to_frames(pixels)[0]
    empty = frames.copy()
    empty[:] = frames[0, 0, 0]
    assert judge(empty).shape == UNCLEAR
    fading = frames.copy()
    fading[-3:] = frames[0, 0, 0]
    assert judge(fading).shape == UNCLEAR
