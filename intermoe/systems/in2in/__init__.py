"""in2IN: a description for each person beside that of the interaction (Ruiz-Ponce et al., CVPR workshop 2024)."""
