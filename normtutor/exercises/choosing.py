"""The exercises of the chapter, from easy to hard."""

from normtutor.exercises.exercise import Exercise

EXERCISES: tuple[Exercise, ...] = ()
