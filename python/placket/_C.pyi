"""placket's C++ core; its operators are torch.ops.placket.*"""
