"""Captions that the tests of converted models are trained on and asked about."""

WORDS = ["a dog runs on the grass", "a red bird sits on a branch", "two dogs and a bird in the snow"]
