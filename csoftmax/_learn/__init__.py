"""What `csoftmax.linear_model` is made of: the objective, its solvers, data, files of models, reports."""
