"""Systems that turn text into motion, each in a folder of its own, behind ``intermoe.pipeline.MotionPipeline``."""
