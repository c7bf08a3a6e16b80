/* Only bcc's ring buffer macros use it, and no program here has one. */
#pragma once
#define PAGE_SIZE 4096UL
