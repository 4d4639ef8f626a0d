"""The verdict on a task: agreed, disputed or waiting, with its note and facts."""
