/* What it would declare is in linux/kconfig.h or in bcc itself. */
#pragma once
