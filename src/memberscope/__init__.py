"""memberscope: who could tell that a record was in a model's training set, and how surely?"""
