"""The paper's ablations at the world's scale: student x teacher x data x steps, paired and with intervals."""
