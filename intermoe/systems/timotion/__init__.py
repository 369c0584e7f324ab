"""TIMotion: both persons as one interleaved sequence, with local patterns (AIGC-Explorer, CVPR 2025)."""
