"""Make pictures of feature maps: gray levels, arrangements, PNG files, matplotlib figures."""
